"""The Python functions: typed keywords, every option effective, every verb exported (D2, D3, D4, D8)."""

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mooring
from mooring import options as opt
from mooring.cli.app import top
from mooring.config import VERBS, Recipe, field_at, options_of, settings
from mooring.merge_methods import ROLES
from mooring.merging.job import Options

SOURCE = Path(mooring.__file__).parent
TYPED = {verb: getattr(opt, f"{verb.title().replace('_', '')}Options") for verb in VERBS if verb != "run"}


PLUGIN = Path(__file__).parent.parent / "examples" / "plugin" / "src" / "mooring_example" / "__init__.py"


def other(key: str) -> Any:
    """A valid value of a field that differs from its default."""
    known = {
        "engine": "vllm", "thinking": "on", "base_url": "http://x/v1", "key_env": "OTHER", "dtype": "float32",
        "device": "cpu",
        "method": "slerp", "rescale": "l1", "search": "bisect", "policy": "knee", "lr_scheduler_type": "constant",
        "target_modules": ("q_proj",), "bertscore_model": "bundled:minilm", "metrics": ("exact_match",),
        "judges": ("wildguard",), "safety": ("advbench",), "over_refusal": ("xstest",), "ordinary": ("alpaca-eval",),
        "task": "task.jsonl", "system": "Other.", "lambdas": (0.3,), "unsafe_exec": True, "confidence": 0.9,
        "density": 0.5, "gamma": 0.2, "epsilon": 0.1, "bound": 0.3, "over_refusal_margin": 0.2, "top_p": 0.9,
        "served_model": "name", "check": False, "too_long": "skip", "threshold": 0.5, "unaligned": "m",
        "safety_adapter": "m", "attacks": ("none", "base64"), "prompt_field": "a", "completion_field": "b",
        "plugins": (f"{PLUGIN}:ENGINE",),
        "messages_field": "c", "on": "ray", "gpus": 2, "storage": "s3://bucket/prefix",
        "forgetting": ("alpaca-eval",), "groups": "tensors",
        "search_safety": ("advbench",), "search_ordinary": ("alpaca-eval",),
        "early_stop": 0.5, "ema": 0.9, "kl": 0.5, "kl_data": ("alpaca-eval",),
        "bound_on": ("none", "base64"), "methods": ("linear", "slerp"), "seeds": (1, 2),
    }  # fmt: skip
    name = key.rpartition(".")[2]
    if name in known:
        return known[name]
    default = field_at(key).default
    if isinstance(default, float) and default < 1:
        return default / 2 + 0.2
    return 2 if default is None else default + 1


@pytest.mark.parametrize("verb", TYPED)
def test_the_typed_options_of_a_verb_are_its_fields(verb: str) -> None:
    fields = set(options_of(verb))
    if verb == "merge":  # the method's options, which are not numbers only as in a recipe, and the output's
        fields = {field.name for field in dataclasses.fields(Options)} - {"lam"} | {"method", "dtype", "tokenizer"}
        fields |= {
            *ROLES,
            "plugins",
            "max_shard_size",
            "on",
            "as_adapter",
            "allow_nonfinite",
            "threads",
            "check",
            "gguf",
            "keep_quantization",
            "qlora_base",
        }
    if verb == "lm_eval":
        fields |= set(opt.TaskOptions.__annotations__)
    assert set(TYPED[verb].__annotations__) == fields


EFFECTIVE = [(verb, name) for verb in VERBS if verb not in ("run", "merge", "prefer") for name in options_of(verb)]


@pytest.mark.parametrize(("verb", "name"), EFFECTIVE)
def test_every_option_changes_the_settings_of_its_verb(verb: str, name: str) -> None:
    more = {"tune.data": ["x"]} if verb == "tune" else {}
    key = options_of(verb)[name]
    given = {name: other(key)}
    if name == "base_url":
        given["engine"] = "openai"
    same = {"method": "dare_linear"} if name == "seeds" else {}  # only a method with a mask takes them
    before, after = settings(verb, same, more=more), settings(verb, same | given, more=more)
    assert before.model_dump() != after.model_dump()


@pytest.mark.parametrize("verb", [verb for verb in TYPED if verb != "merge"])
def test_an_unknown_option_is_refused(verb: str) -> None:
    functions: dict[str, tuple[object, ...]] = {"compare": ("b", "t"), "prefer": ("a", "b", "p"), "score": ("a", "p")}
    keywords: dict[str, Any] = {
        "safeguard": {"out": "o"}, "tune": {"out": "o"}, "generate": {"out": "o"}, "compare": {"prompts": "x"},
        "prefer": {"judge": "j"}, "lm_eval": {"tasks": ["bbh"]}, "verify_served": {"base_url": "http://localhost:1"},
    }  # fmt: skip
    positional = functions.get(
        verb, ("a",) if verb in ("rejudge", "select", "lm_eval", "verify_served", "preview_data") else ("a", "b")
    )
    with pytest.raises(mooring.RecipeError) as caught:
        getattr(mooring, verb)(*positional, **keywords.get(verb, {}), no_such_option=1)
    assert caught.value.code == "recipe.unknown_option"


@pytest.mark.parametrize("name", ["safety_repetition_penalty", "task_temperature", "safety", "drafts"])
def test_generate_refuses_what_it_would_ignore(name: str) -> None:
    with pytest.raises(mooring.RecipeError) as caught:
        mooring.generate("m", "p.jsonl", out="o.jsonl", **{name: 1.2})  # type: ignore[misc]
    assert caught.value.code == "recipe.unknown_option"


def test_no_public_function_takes_anything() -> None:
    for name in mooring.api.__all__:
        signature = inspect.signature(getattr(mooring.api, name))
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                assert str(parameter.annotation).startswith("Unpack[opt."), name


def test_every_verb_is_a_function_of_the_package() -> None:
    several = {
        "mergekit": ["mergekit_run", "mergekit_export"],
        "label": ["label_page", "label_server", "import_labels", "judge_error"],
        "data": ["preview_data"],
        "plugins": ["list_plugins"],
        "export": ["export_run"],
    }
    for verb in top.commands:
        for name in several.get(verb, [verb.replace("-", "_")]):
            assert callable(getattr(mooring, name)), name
            assert name in mooring.__all__


def test_every_exported_name_exists_and_the_import_is_light() -> None:
    for name in mooring.__all__:
        assert getattr(mooring, name) is not None
    probe = "import mooring, sys; print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_set_is_sampled_alike_by_a_run_and_by_generate() -> None:
    recipe = Recipe.parse({"base": "b", "tuned": "t"})
    kinds: tuple[Any, ...] = ("safety", "over_refusal", "ordinary", "task")
    for kind in kinds:
        for verb in ("generate", "compare"):
            alone = settings(verb, {}, kind).generate.sampling(kind, recipe.seed)
            assert alone == recipe.generate.sampling(kind, recipe.seed)
    given = settings("generate", {"repetition_penalty": 1.0, "max_tokens": 7}, "safety")
    params = given.generate.sampling("safety", given.seed)
    assert (params.repetition_penalty, params.max_tokens) == (1.0, 7)


def test_defaults_of_the_recipe_are_not_written_again_in_the_api_or_the_command_line() -> None:
    written = {512, 42, 1.2, 1024, 1e-4, 0.95, "OPENAI_API_KEY", "You are a helpful assistant.", "linear", "classifier"}
    written.add("microsoft/deberta-xlarge-mnli")
    for path in (SOURCE / "api.py", *sorted((SOURCE / "cli").glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and not isinstance(node.value, bool):
                assert node.value not in written, f"{path.name}:{node.lineno}: {node.value!r}"


def test_merge_takes_torchs_type_and_a_size_as_text(
    tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any
) -> None:
    import torch

    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    for size, name in (("100KB", "text"), (100_000, "number")):
        out = mooring.merge(
            tiny_model_folder, tuned, lam=0.5, out=tmp_path / name, dtype=torch.bfloat16, max_shard_size=size
        )
        assert len(list(out.glob("*.safetensors"))) > 1


def test_merge_takes_a_number_of_numpy(tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    lams = {"numpy": np.float32(0.5), "python": 0.5}
    numpy, python = (
        mooring.merge(tiny_model_folder, tuned, lam=lam, out=tmp_path / name) for name, lam in lams.items()
    )
    assert (numpy / "model.safetensors").read_bytes() == (python / "model.safetensors").read_bytes()
    assert json.loads((numpy / "mooring.json").read_text())["lambda"] == 0.5
