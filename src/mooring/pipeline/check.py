"""Whether a merged model computes what it should: its logits and tensors beside those of its base and tuned models.

transformers and PEFT load the models, so that a fault of this package's own reading shows: a wrong scale, a tensor in
the wrong place, a tie that is lost, a tokenizer of another size, another class. Compared are, in float32 on the CPU,

- the merge at λ = 1, computed in memory, with the tuned model's forward pass (PEFT's, if it is an adapter);
- the merge at λ = 0 with the base;
- the tensors that were written, and their logits, with (1−λ)·base + λ·tuned of what transformers loaded, if there is
  one tuned model and the method is this sum; else the tensors with the method's own formula in float64.

What rounding explains: two logits may differ by 3·10⁻⁵ of the largest one. On SmolLM2 with an adapter it was 2·10⁻⁶:
float32 has 24 bits, and sums of thousands of products are taken in another order. A written entry may differ from its
reference by one step of the type that it is stored in, and in 16 bits at most one entry in a hundred, because both are
rounded from values that are almost equal; a hundredth of independent steps moves a sum by a tenth of one (√0.01), which
the logits of the written model may differ by besides.
"""

import contextlib
import gc
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mooring import bounded
from mooring.chat import encode_prompt
from mooring.errors import ModelError, UserError
from mooring.events import Event, OnEvent, ignore
from mooring.files import gibibytes
from mooring.memory import available_memory
from mooring.merge_methods import Role, check_references
from mooring.merge_point import lam_label
from mooring.merging.in_memory import OpenMerge
from mooring.merging.job import Output, options_from_json, options_of
from mooring.merging.layers import depths, module
from mooring.merging.pair import ModelPair, open_pair
from mooring.merging.tensor_value import TensorValue
from mooring.models import MANIFEST, Adapter, Checkpoint, is_adapter, open_checkpoint, read_json
from mooring.models.classes import attach_adapter, load_config, load_model, load_tokenizer, loading, model_class
from mooring.quiet import quiet
from mooring.records import LogitComparison, MergeCheck, Message, Prompt

PROMPTS = (
    "What is the capital of Norway?",
    "Write a short poem about the sea.",
    "Compute 17 + 25, step by step.",
    "Translate 'good morning' into French.",
    "List three uses of a paper clip.",
    "def add(a, b):",
    "Why is the sky blue?",
    "Summarize in one sentence: the train was late, so we took the bus.",
)
POSITIONS = 8
"""How many of a prompt's last tokens count."""
TOLERANCE = 3e-5
"""Of the largest logit."""
ROUNDED_OTHERWISE = 0.01
"""The largest share of entries in 16 bits that may differ by one step."""
_FLOAT32 = 2.0**-20
"""Of the largest entry of a tensor: a few steps of float32, where the sum cancels."""
_ROOM = 2**30
"""Bytes besides the models: activations, logits and libraries."""
_ONE_MODEL, _TWO_MODELS = 1.5, 3.0
"""Sizes of a model in float32 that loading one, or comparing two, takes with what is read from files."""
_SLICE = 2**22
"""Entries that are compared at a time."""
_FORMULA = "(1−λ)·base + λ·tuned"
_ENGINE = "the method's formula in float64"


def check_merge(
    folder: Path,
    base: Path,
    tuned: Sequence[Path],
    references: Mapping[Role, Path] | None = None,
    on_event: OnEvent | None = None,
) -> MergeCheck:
    """Check a folder that `merge` wrote; what is wrong is in the result.

    Args:
        folder: The merged model or adapter, with its manifest.
        base: Folder of the base.
        tuned: Folders of the tuned models.
        references: Folders of the further models that the method needs, by role.
        on_event: Receives the progress, in models.

    Raises:
        UserError: A further model that the method requires is missing.
        ModelError: `folder` has no manifest.
        MismatchError: The models do not belong together.
    """
    if not (folder / MANIFEST).is_file():
        what = f"{folder}: has no {MANIFEST}, so it was not merged by Mooring"
        raise ModelError(what, "name a merged model's folder", code="model.no_manifest")
    manifest = read_json(folder / MANIFEST, bounded.MANIFEST)
    check_references(str(manifest.get("method")), references or {})
    with open_pair(base, tuned, references=references) as pair, quiet("transformers", stderr=True):
        return _Check(folder, pair, manifest, on_event or ignore).run()


class _Check:
    """One check: what is found is collected, model by model."""

    def __init__(self, folder: Path, pair: ModelPair, manifest: Mapping[str, Any], on_event: OnEvent) -> None:
        self.folder, self.pair, self.manifest, self.on_event = folder, pair, manifest, on_event
        self.method = str(manifest["method"])
        self.lam, self.settings = options_from_json(self.method, manifest["lambda"], manifest["options"])
        self.as_adapter = is_adapter(folder)
        self.logits: list[LogitComparison] = []
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.tensors, self.reference = 0, ""
        self.size = 4 * sum(tensor.numel for tensor in pair.tensors.values())
        self.models = 0
        """Models that were loaded so far."""

    def run(self) -> MergeCheck:
        """Check as much as memory allows."""
        room = available_memory()
        if self.pair.base.quantized or any(isinstance(t, Checkpoint) and t.quantized for t in self.pair.tuned):
            self.notes.append("logits, since a model is quantized: what computes with it rounds in its own way")
            self._compare_layout()
            self._compare_files()
        elif room and room < (need := int(_ONE_MODEL * self.size) + _ROOM):
            self.notes.append(
                f"logits, since a model in float32 takes {gibibytes(need)} and {gibibytes(room)} are free"
            )
            self._compare_layout()
            self._compare_files()
        else:
            self._compare_models(both=not room or room > _TWO_MODELS * self.size + _ROOM)
        return MergeCheck(
            passed=not self.faults,
            logits=tuple(self.logits),
            tensors=self.tensors,
            reference=self.reference,
            faults=tuple(self.faults),
            notes=tuple(self.notes),
        )

    # --- logits -------------------------------------------------------------------------------------------------------

    def _compare_models(self, both: bool) -> None:
        """Load the models one after the other; with `both`, two may be in memory at the same time."""
        try:
            self.rows = self._tokens()
        except ModelError as error:
            self.faults.append(error.message)
            return
        expected, model = None, None
        try:
            base = self._load(self.pair.base.folder)
            base_logits = self._run(base)
            if both and len(self.pair.tuned) == 1 and self._is_sum:
                tuned_logits, model = self._tuned_and_sum(base, self.pair.tuned[0])
            else:
                tuned_logits = [self._tuned(base, tuned) for tuned in self.pair.tuned]
            del base
        except ModelError as error:
            self.notes.append(f"logits, since {error.message}")
            self._compare_layout()
            self._compare_files()
            return
        gc.collect()  # models refer to themselves
        if model is not None:
            expected = self._run(model)
        self._compare_written(model, expected)
        del model
        gc.collect()
        for number, (tuned, logits) in enumerate(zip(self.pair.tuned, tuned_logits, strict=True), 1):
            several = f" {number}" if len(tuned_logits) > 1 else ""
            self._compare_end(1.0, tuned, logits, f"the tuned model{several}")
        self._compare_end(0.0, self.pair.tuned[0], base_logits, "the base")

    def _tokens(self) -> list[list[int]]:
        """The prompts as tokens of the merged model."""
        folder = self.pair.base.folder if self.as_adapter else self.folder
        known = min(self._vocabularies())
        if not any(
            (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        ):
            self.notes.append("prompts, since there is no tokenizer: other tokens were taken")
            return [[(7 * row + 13 * place + 3) % known for place in range(12)] for row in range(len(PROMPTS))]
        tokenizer = load_tokenizer(folder)
        rows = [_encode(tokenizer, text) for text in PROMPTS]
        held = max(self._vocabularies())
        if len(tokenizer) > held:
            self.faults.append(f"the tokenizer has {len(tokenizer)} tokens, and the embedding {held} rows")
        return [[token for token in row if token < known] or [0] for row in rows]

    def _vocabularies(self) -> list[int]:
        """Rows of the embedding in the merged model, and in what all models share."""
        pair = self.pair.tensors
        rows = [
            size
            for name, tensor in pair.items()
            if "embed" in name or "wte" in name
            if len(tensor.shape) == 2
            for size in (tensor.shape[0], tensor.shared // tensor.shape[1])
        ]
        return rows or [2]

    def _run(self, model: Any) -> Tensor:
        """A model's logits at the last positions of every prompt."""
        self.models += 1
        total = 4 + len(self.pair.tuned) + len(self.pair.tuned)
        self.on_event(Event(step="check", kind="progress", done=min(self.models, total), total=total, unit="models"))
        return _logits(model, self.rows)

    def _compare(self, found: Tensor, expected: Tensor, model: str, reference: str, step: float = 0.0) -> bool:
        """Compare logits; `step` is the relative distance of two neighbours in the type that the model is stored in."""
        width = min(found.shape[-1], expected.shape[-1])
        found, expected = found[:, :width], expected[:, :width]
        finite = bool(found.isfinite().all() and expected.isfinite().all())
        difference = float((found - expected).abs().max()) if finite else float("inf")
        allowed = (TOLERANCE + math.sqrt(ROUNDED_OTHERWISE) * step) * max(
            1.0, float(expected.abs().max()) if finite else 1.0
        )
        same = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
        compared = LogitComparison(
            model=model,
            reference=reference,
            difference=float(f"{difference:.2g}"),
            allowed=float(f"{allowed:.2g}"),
            same_top=round(same, 4),
            passed=difference <= allowed,
        )
        self.logits.append(compared)
        return compared.passed

    def _load(self, folder: Path) -> Any:
        return load_model(folder, dtype=torch.float32).eval()

    def _tuned(self, base: Any, tuned: Checkpoint | Adapter) -> Tensor:
        """The logits of a tuned model."""
        if isinstance(tuned, Checkpoint):
            return self._run(self._load(tuned.folder))
        wrapped = attach_adapter(base, tuned.folder).eval()
        logits = self._run(wrapped)
        wrapped.unload()
        return logits

    # --- the written model --------------------------------------------------------------------------------------------

    @property
    def _is_sum(self) -> bool:
        """Whether the method is (1−λ)·base + λ·tuned."""
        options = options_of(self.method, self.lam, **self.settings)
        weights = [weight.constant for weight in options.weights] or [1.0]
        plain = options.base_weight is None and (self.method == "linear" or weights == [1.0])
        return self.method in ("linear", "task_arithmetic") and plain

    def _tuned_and_sum(self, base: Any, tuned: Checkpoint | Adapter) -> tuple[list[Tensor], Any]:
        """The logits of the tuned model, and the base's class with the sum as its weights; None if it has none."""
        if isinstance(tuned, Checkpoint):
            other = self._load(tuned.folder)
            logits = self._run(other)
            before, after, model = _state(base), _state(other), base
        else:
            before = {name: value.clone() for name, value in _state(base).items()}
            wrapped = attach_adapter(base, tuned.folder).eval()
            logits = self._run(wrapped)
            model = wrapped.merge_and_unload().eval()
            if (_logits(model, self.rows) - logits).abs().max() > TOLERANCE * max(1.0, float(logits.abs().max())):
                return [logits], None  # PEFT merges a tied layer into both of its uses
            after = _state(model)
        targets = _distinct(_state(model))
        lams = self._lams(targets)
        untied = "tie_word_embeddings" in self.pair.config  # the base's class cannot hold it
        if untied or lams is None or any(not _have(name, before, after) for name in targets):
            return [logits], None
        with torch.no_grad():
            for name, target in targets.items():
                if target.is_floating_point():
                    _put_sum(target, before[name], after[name], lams[name], self._dtype(name))
        return [logits], model

    def _lams(self, state: Mapping[str, Tensor]) -> dict[str, float] | None:
        """λ of each parameter; None if it differs by stored tensors that are no parameters."""
        value = TensorValue.of(self.lam)
        if value.constant is not None:
            return dict.fromkeys(state, value.constant)
        if self.method != "linear" or not state.keys() <= self.pair.tensors.keys():
            return None
        depth = depths([name for name, tensor in self.pair.tensors.items() if tensor.dtype.is_floating_point])
        return {name: value.at(name, depth[name]) if name in depth else 0.0 for name in state}

    def _dtype(self, name: str) -> torch.dtype | None:
        """The type that a parameter is stored in; None if that is not known."""
        if self.as_adapter:
            return None
        if self._stored is None:
            with open_checkpoint(self.folder) as written:
                self._stored = {info.name: info.dtype for info in written.tensors.values()}
        kinds = {kind for kind in self._stored.values() if kind.is_floating_point}
        return self._stored.get(name) or (kinds.pop() if len(kinds) == 1 else None)

    _stored: dict[str, torch.dtype] | None = None

    def _compare_written(self, model: Any, expected: Tensor | None) -> None:
        """Load what was written, and compare it with the sum in `model`, or with the engine in float64."""
        try:
            if self.as_adapter:
                written = attach_adapter(self._load(self.pair.base.folder), self.folder).eval()
            else:
                written = self._load(self.folder)
            found = self._run(written)
        except ModelError as error:
            self.faults.append(f"it cannot be loaded ({error.message})")
            return
        if expected is None:
            self._compare_layout()
            self._compare_files()
            return
        groups: list[str] = []
        if not self.as_adapter:
            self.reference = _FORMULA
            groups = self._compare_states(_state(written), _state(model))
        if groups:
            self.faults.append(f"tensors differ from {_FORMULA}: {', '.join(groups)}")
        label = f"the written model at {self._label}"
        if not self._compare(found, expected, label, _FORMULA, self._step) and not groups:
            self.faults.append("its tensors are right, but not its logits: is its config.json the base's?")

    @property
    def _step(self) -> float:
        """The relative step of the coarsest type that the written model is stored in."""
        if self.as_adapter:
            return 0.0
        with open_checkpoint(self.folder) as written:
            kinds = {info.dtype for info in written.tensors.values() if info.dtype.is_floating_point}
        return max((torch.finfo(kind).eps for kind in kinds), default=0.0)

    @property
    def _label(self) -> str:
        constant = TensorValue.of(self.lam).constant
        return "several λ" if constant is None else lam_label(constant)

    def _compare_states(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
        """The groups of tensors that differ by more than rounding."""
        differing = []
        for name, value in expected.items():
            if name not in found:
                differing.append(name)
                continue
            self.tensors += 1
            kind = self._dtype(name) or torch.float32
            if not _close(found[name], value, kind, exact_share=True):
                differing.append(name)
        return _groups(differing)

    def _compare_files(self) -> None:
        """Compare every written tensor with the same merge in float64, a tensor at a time."""
        if self.as_adapter or "quantization_config" in read_json(self.folder / "config.json"):
            kind = "an adapter holds factors" if self.as_adapter else "it is quantized again (see its manifest)"
            self.notes.append(f"tensors, since {kind}")
            return
        self.reference = _ENGINE
        differing = []
        with open_checkpoint(self.folder) as written:
            for name, value in self._merge(self.pair, torch.float64).stream(self.lam):
                self.tensors += 1
                info = written.tensors.get(name)
                if info is None or not _close(written.tensor(name), value, info.dtype, exact_share=True):
                    differing.append(name)
        if differing:
            self.faults.append(f"tensors differ from {_ENGINE}: {', '.join(_groups(differing))}")

    def _compare_layout(self) -> None:
        """Compare what transformers' rules do with the written tensors, and with the base's."""
        if self.as_adapter:
            return
        from mooring.models.layout import NoLayoutError, layout_of

        with open_checkpoint(self.folder) as written:
            try:
                ours, theirs = layout_of(written), layout_of(self.pair.base)
            except NoLayoutError as error:
                self.notes.append(f"the class, since {error}")
                return
            unused = sorted(set(ours.unused) - set(theirs.unused))
            lost = sorted({*theirs.holders} - {*ours.holders})
        if unused:
            self.faults.append(f"{ours.class_name} does not use {', '.join(_groups(unused))}")
        if lost:
            self.faults.append(f"{ours.class_name} finds no weights for {', '.join(_groups(lost))}")

    # --- the ends -----------------------------------------------------------------------------------------------------

    def _merge(self, pair: ModelPair, dtype: torch.dtype) -> OpenMerge:
        output = Output(dtype=dtype, allow_nonfinite=bool(self.manifest.get("allow_nonfinite")))
        return OpenMerge(pair, method=self.method, output=output, **self.settings)

    def _compare_end(self, lam: float, tuned: Checkpoint | Adapter, expected: Tensor, what: str) -> None:
        """Compare the merge at one end of λ, computed in memory in float32, with the model at that end."""
        with open_pair(self.pair.base.folder, tuned.folder) as pair:
            output = Output(dtype=torch.float32, allow_nonfinite=bool(self.manifest.get("allow_nonfinite")))
            merge = OpenMerge(pair, method="linear", output=output)
            tensors = merge.tensors(lam)
            with tempfile.TemporaryDirectory() as scratch:
                merge.write_side_files(Path(scratch))
                try:
                    model = _filled(Path(scratch), tensors)
                except ModelError as error:
                    self.faults.append(f"the merge at {lam_label(lam)} cannot be loaded ({error.message})")
                    return
        if not self._compare(self._run(model), expected, f"the merge at {lam_label(lam)}", what):
            self.faults.append(f"at {lam_label(lam)} it is not {what}{self._responsible(model, lam, tuned)}")

    def _responsible(self, model: Any, lam: float, tuned: Checkpoint | Adapter) -> str:
        """The tensors in which a model differs from the one that it should be, if they can be found."""
        other = self._load(self.pair.base.folder)
        if lam and isinstance(tuned, Checkpoint):
            other = self._load(tuned.folder)
        elif lam:
            other = attach_adapter(other, tuned.folder).merge_and_unload()
        found, expected = _state(model), _state(other)
        names = [
            name
            for name, value in expected.items()
            if name not in found or not _close(found[name], value, torch.float32, exact_share=False)
        ]
        if names:
            return f" ({', '.join(_groups(names))} differ)"
        fields = [] if isinstance(tuned, Adapter) else _other_fields(self.pair.base.config, tuned.config)
        return f" (its config.json has another {' and '.join(fields[:4])})" if fields else ""


# --- models ---------------------------------------------------------------------------------------------------------


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a prompt, through the chat template if there is one that takes it."""
    with contextlib.suppress(UserError):
        return encode_prompt(tokenizer, Prompt(id="check", messages=(Message("user", text),)), None)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Logits at the last `POSITIONS` tokens of every row, (positions, vocabulary); rows are padded at the end."""
    length = max(map(len, rows))
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    return torch.cat([logits[n, max(0, len(row) - POSITIONS) : len(row)] for n, row in enumerate(rows)]).clone()


def _filled(folder: Path, tensors: dict[str, Tensor]) -> Any:
    """The model of a folder without weights, with these weights."""
    kind, part = model_class(load_config(folder))
    loader: Callable[..., Any] = kind.from_pretrained  # type: ignore[attr-defined]
    with loading(folder, "transformers", "the merge"):
        model, info = loader(None, config=part, state_dict=tensors, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{len(missing)} tensors are missing, such as {missing[0]}", code="model.missing_tensor")
    return model.eval()


def _state(model: Any) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers, by name."""
    return {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of tensors that are tied, the first."""
    first: dict[int, str] = {}
    for name, value in state.items():
        first.setdefault(value.data_ptr() if value.numel() else id(value), name)
    return {name: state[name] for name in first.values()}


def _have(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether both models have a tensor, perhaps with other rows."""
    return name in before and name in after and _fits(before[name], after[name])


def _fits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, or differ in rows only."""
    return one.dim() == other.dim() and one.shape[1:] == other.shape[1:]


def _put_sum(target: Tensor, before: Tensor, after: Tensor, lam: float, kind: torch.dtype | None) -> None:
    """Write (1−λ)·before + λ·after, computed in float64 and rounded once to the type that it is stored in."""
    rows = min(len(before), len(after), len(target)) if target.dim() else 1
    parts = (target, before, after) if not target.dim() else (target[:rows], before[:rows], after[:rows])
    for place, b, a in zip(*(torch.split(part.reshape(-1), _SLICE) for part in parts), strict=True):
        value = b.double() * (1 - lam) + a.double() * lam
        place.copy_(value.to(kind) if kind is not None else value)


def _close(found: Tensor, expected: Tensor, kind: torch.dtype, *, exact_share: bool) -> bool:
    """Whether a tensor, stored in a type, equals a reference but for rounding; rows that one has alone do not count."""
    if not _fits(found, expected):
        return False
    rows = min(len(found), len(expected)) if found.dim() else 1
    found, expected = (t[:rows].reshape(-1) if t.dim() else t.reshape(-1) for t in (found, expected))
    if not kind.is_floating_point:
        return torch.equal(found, expected.to(found.dtype))
    step, floor = torch.finfo(kind).eps, _FLOAT32 * float(expected.abs().max()) if expected.numel() else 0.0
    floor += torch.finfo(kind).smallest_normal * step
    differing = 0
    for ours, theirs in zip(torch.split(found, _SLICE), torch.split(expected, _SLICE), strict=True):
        rounded = theirs.to(kind).double()
        gap = (ours.double() - rounded).abs()
        if not bool((gap <= step * rounded.abs() + floor).all()):
            return False
        differing += int((gap > floor).sum())
    coarse = step > torch.finfo(torch.float32).eps
    return not (exact_share and coarse and differing > max(1.0, ROUNDED_OTHERWISE * found.numel()))


def _other_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The fields of two configurations that differ, but for those that do not change what a model computes."""
    keys = sorted({*one, *other} - {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"})
    return [key for key in keys if one.get(key) != other.get(key) and not key.endswith("_token_id")]


def _groups(names: Sequence[str]) -> list[str]:
    """The kinds of module of tensors, with how many there are; at most four."""
    counts: dict[str, int] = {}
    for name in names:
        place = module(name)
        key = name if place is None else f"{place[0]}.*.{place[2]}"
        counts[key] = counts.get(key, 0) + 1
    found = [key if count == 1 else f"{key} ({count})" for key, count in counts.items()]
    return found if len(found) <= 4 else [*found[:3], f"{len(found) - 3} other kinds"]
