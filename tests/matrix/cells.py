"""What works with an architecture: each kind of tuned model × each way to merge it, as transformers and PEFT see it."""

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mooring
from matrix.tiny import IDS
from mooring.errors import ModelError, UserError
from mooring.merging.pair import open_pair
from mooring.models.classes import attach_adapter, load_model
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.quiet import quiet

KINDS = {
    "full": "a whole tuned model",
    "lora": "a LoRA adapter on all linear layers (PEFT's `all-linear`)",
    "parameters": "a LoRA adapter on fused experts (`target_parameters`)",
    "qlora": "a LoRA adapter on attention that names a 4-bit model as its base, merged into the 16-bit one",
}
WAYS = {
    "merge": "`merge`, at λ = 1 and 0.5",
    "adapter": "`merge --as-adapter`, at λ = 0.5",
    "sweep": "weights changed in place from one λ to the next",
}
_CLOSE = 2e-4
"""Logits of the same model by other sums in float32, relative to the largest."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """The outcome of one way to merge one kind of tuned model.

    Attributes:
        outcome: `works`; `unloaded` if it equals PEFT's `merge_and_unload`, but not its forward pass; `unread` for an
            adapter that is right, and of which PEFT reads only a part, as of its own; `reloads` for a sweep that loads
            the model again for each λ; `refused`; `none` if there is no such tuned model; or `wrong`, which fails the
            test.
        code: The code of the error.
        reason: Why, in one line.
    """

    outcome: str
    code: str = ""
    reason: str = ""


NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """The logits of a tuned model.

    Attributes:
        logits: Those of the model, or of PEFT's `merge_and_unload` if `unloaded`.
        unloaded: Whether PEFT's forward pass differs from its own `merge_and_unload`: where a module passes over its
            layers' forward pass, such as Mamba's `dt_proj`, PEFT does not see all of it.
    """

    logits: Tensor
    unloaded: bool = False


def cells(model: Any, tokenizer: Any, folder: Path) -> dict[str, dict[str, Cell]]:
    """Try everything with one model; the outcomes by kind and way. Uses up the model, and about a megabyte of disk."""
    base = folder / "base"
    _save(_jittered(model, 0.05, seed=0), base, tokenizer)
    found = {}
    for kind, tune in (("full", _full), ("lora", _lora), ("parameters", _parameters), ("qlora", _qlora)):
        tuned = folder / kind
        try:
            with quiet("transformers"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = tune(copy.deepcopy(model), tuned)
        except _NoSuchModelError as error:
            found[kind] = dict.fromkeys(WAYS, Cell(NONE, reason=str(error)))
            continue
        if kind == "full":
            for file in [*base.glob("token*"), *base.glob("*.jinja"), *base.glob("special*")]:
                shutil.copy(file, tuned)
        found[kind] = {
            "merge": _tried(_merge, base, tuned, expected, folder / f"{kind}-out"),
            "adapter": _tried(_as_adapter, base, tuned, expected, folder / f"{kind}-adapter"),
            "sweep": _tried(_sweep, base, tuned, expected),
        }
    return found


class _NoSuchModelError(Exception):
    """PEFT makes no such adapter for a model."""


def _tried(attempt: Callable[..., str], *args: Any) -> Cell:
    try:
        return Cell(attempt(*args))
    except UserError as error:
        return Cell("refused", error.code, str(error).split("\n")[0])
    except Exception as error:  # whatever else is raised is a fault of ours
        return Cell("wrong", type(error).__name__, str(error).split("\n")[0][:300])


def _merge(base: Path, tuned: Path, expected: Expected, out: Path) -> str:
    with quiet("transformers"):
        merged = load_model(mooring.merge(base, tuned, out=out / "1", lam=1.0), dtype=torch.float32).eval()
        _compare(_logits(merged), expected.logits, "at λ = 1, logits")
        whole, ground = merged.state_dict(), load_model(base, dtype=torch.float32).state_dict()
        half = load_model(mooring.merge(base, tuned, out=out / "0.5", lam=0.5), dtype=torch.float32).state_dict()
    for name, value in half.items():
        if value.is_floating_point():
            reference = (ground[name].double() + whole[name].double()) / 2
            _compare(value.double(), reference, f"at λ = 0.5, {name}", close=1e-6)
    return "unloaded" if expected.unloaded else "works"


def _as_adapter(base: Path, tuned: Path, expected: Expected, out: Path) -> str:
    adapter = mooring.merge(base, tuned, out=out / "adapter", lam=0.5, as_adapter=True)
    whole = _logits(load_model(mooring.merge(base, tuned, out=out / "whole", lam=0.5), dtype=torch.float32))
    if not _reads(base, tuned):
        again = mooring.merge(base, adapter, out=out / "again", lam=1.0)
        _compare(_logits(load_model(again, dtype=torch.float32)), whole, "as adapter, logits")
        return "unread"
    with quiet("transformers"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = attach_adapter(load_model(base, dtype=torch.float32), adapter).eval()
        model = loaded.merge_and_unload() if expected.unloaded else loaded
        _compare(_logits(model), whole, "as adapter, logits")
    return "unloaded" if expected.unloaded else "works"


def _reads(base: Path, tuned: Path) -> bool:
    """Whether PEFT reads all of an adapter that it wrote."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attach_adapter(load_model(base, dtype=torch.float32), tuned)
    except ModelError as error:
        if error.code != "model.adapter_names":
            raise
        return False
    return True


def _sweep(base: Path, tuned: Path, expected: Expected) -> str:
    with open_pair(base, tuned) as pair, MergedModel(SweepSpec(pair=pair)) as merged:
        merged.at(0.5)
        merged.at(0.0)
        _compare(_logits(merged.at(1.0).model), expected.logits, "after a sweep, logits")
        if not merged.in_place:
            return "reloads"
    return "unloaded" if expected.unloaded else "works"


def _compare(actual: Tensor, expected: Tensor, what: str, close: float = _CLOSE) -> None:
    """Raise unless two tensors agree, relative to the largest value."""
    difference = float((actual.double() - expected.double()).abs().max()) if actual.numel() else 0.0
    if not difference <= close * max(1.0, float(expected.abs().max()) if expected.numel() else 1.0):
        raise AssertionError(f"{what} differ by {difference:.2g}")


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _jittered(model: Any, size: float, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) * size)
    return model.eval()


def _save(model: Any, folder: Path, tokenizer: Any = None) -> None:
    with quiet("transformers"):
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _full(model: Any, folder: Path) -> Expected:
    _save(_jittered(model, 0.02, seed=1), folder)
    return Expected(_logits(model))


def _lora(model: Any, folder: Path) -> Expected:
    return _adapted(model, folder, target_modules="all-linear")


def _qlora(model: Any, folder: Path) -> Expected:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    attention = sorted(names & {"q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "c_attn", "qkv_proj"})
    logits = _adapted(model, folder, target_modules=attention or "all-linear")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "someone/tiny-bnb-4bit"}))
    return logits


def _parameters(model: Any, folder: Path) -> Expected:
    fused = {name for name, weight in model.named_parameters() if weight.dim() == 3 and "experts." in name}
    if not fused:
        raise _NoSuchModelError("it has no fused experts")
    names = sorted({".".join(name.split(".")[-2:]) for name in fused})
    return _adapted(model, folder, target_modules=[], target_parameters=names)


def _adapted(model: Any, folder: Path, **settings: Any) -> Expected:
    from peft import LoraConfig, get_peft_model

    try:
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
        adapted.save_pretrained(folder)
        logits = _logits(adapted)
        unloaded = _logits(adapted.merge_and_unload())
        differs = float((logits - unloaded).abs().max()) > _CLOSE * max(1.0, float(logits.abs().max()))
        return Expected(unloaded if differs else logits, differs)
    except Exception as error:  # PEFT may fail in any way for an architecture that it does not know
        raise _NoSuchModelError(f"PEFT: {str(error).strip().split(chr(10))[0][:160]}") from None
