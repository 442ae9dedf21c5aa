"""Every method merges the same models to the same bytes as before, for any λ and number of threads."""

import functools
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api
import frozen
import pytest
import torch
from small_models import FIXTURES, Fixture, bell

LAMBDAS: dict[str, dict[str, Any]] = {
    "λ 0, 0.4, 1": {"lambdas": [0.0, 0.4, 1.0]},
    "λ 0.2 to 0.8": {"lam": (0.2, 0.8)},
    "λ by module": {"lam": {"layers.{0-1}.mlp.*": 0.3, "self_attn.q_proj.*": (0.1, 0.5, 0.9), "*": 0.6}},
}
"""λ: both ends and one in between, a ramp over depth, patterns of modules."""
WHOLE = ("bfloat16-sharded", "vocabularies")
"""The fixtures merged with all options; the others are merged with one set of them."""
MANY_ALONE = ("l1", "unscaled", "normalize True", "normalize False")
"""Options used only with the fixture of several tuned models, to save time."""
ONE = {"density": 0.5, "gamma": 0.05, "epsilon": 0.1, "seed": 7}
"""Options for any number of tuned models, if a method takes them."""


def variants(method: str, models: int) -> dict[str, dict[str, Any]]:
    """Sets of options of a method, by name."""
    takes = api.METHODS[method][2]
    made: dict[str, dict[str, Any]] = {}
    if "density" in takes:
        made["thinned"] = {name: value for name, value in ONE.items() if name in takes}
        made["l1"] = made["thinned"] | {"rescale": "l1"}
        made["unscaled"] = made["thinned"] | {"rescale": "none"}
        made["by module"] = made["thinned"] | {"density": {"mlp.*": 0.4, "*": 0.7}}
    if "seed" in takes:
        made["another seed"] = made["thinned"] | {"seed": 8}
    if "weights" in takes:
        made["weights"] = {"weights": [0.9, 0.4, 0.2][:models]}
    if "weights" in takes and "density" in takes and models > 1:
        made["each"] = made["thinned"] | {"weights": [0.9, 0.4, 0.2][:models], "density": [0.3, 0.6, 0.8][:models]}
    if "normalize" in takes and method != "linear":
        for value in (True, False):
            made[f"normalize {value}"] = made.get("thinned", {}) | {
                "weights": [0.9, 0.4, 0.2][:models],
                "normalize": value,
            }
    if "base_weight" in takes:
        made["base weight"] = {"weights": [0.9, 0.4, 0.2][:models], "base_weight": 0.7}
    if "base_weight" in takes and "normalize" in takes:
        made["not normalized"] = made["base weight"] | {"normalize": False}
    return made


def data_digest(path: Path) -> str:
    """SHA-256 of the tensors' bytes in a safetensors file, without its header."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + size)
        return hashlib.sha256(file.read()).hexdigest()


def digests(folder: Path) -> dict[str, Any]:
    """The digest of the tensors by file; for an adapter also the settings that scale it."""
    found: dict[str, Any] = {path.name: data_digest(path) for path in sorted(folder.glob("*.safetensors"))}
    if (folder / "adapter_config.json").exists():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        scales = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
        found["scales"] = [config.get(key) for key in scales]
    return found


def cases(name: str, fixture: Fixture, method: str) -> dict[str, dict[str, Any]]:
    """The arguments of all merges of a fixture by a method, by name; empty if the method does not apply."""
    least, most, _ = api.METHODS[method]
    models = len(fixture.tuned)
    if not least <= models <= (most or models):
        return {}
    made = dict(LAMBDAS)
    if name not in WHOLE and method != "lines":
        made.pop("λ 0.2 to 0.8")  # a ramp is in λ by module too
    options = variants(method, models)
    if name == "bfloat16-sharded":
        options = {title: given for title, given in options.items() if title not in MANY_ALONE}
    if name not in WHOLE:
        last = list(options)[-1:]
        options = {
            title: options[title]
            for title in dict.fromkeys((["weights"] if fixture.adapters else []) + last)
            if title in options
        }
    made |= {f"λ 0.4, {title}": {"lam": 0.4} | given for title, given in options.items()}
    if name == "float32":
        made["λ 0.4"] = {"lam": 0.4}
    if name in WHOLE and "thinned" in options:
        made["λ 1, thinned"] = {"lam": 1.0} | options["thinned"]
    if name in WHOLE and method == "linear":
        made["λ 0.4, as float16"] = {"lam": 0.4, "dtype": "float16"}
        made["λ 0.4, in small files"] = {"lam": 0.4, "max_shard_size": 2000}
    if fixture.adapters and method in api.ADAPTER_METHODS:
        for title, given in list(made.items()):
            if "base_weight" not in given:
                made[f"{title}, as an adapter"] = given | {"as_adapter": True}
    return made


def inputs(fixture: Fixture) -> dict[str, Any]:
    """The digests of a fixture's own files: if these differ, the merges prove nothing."""
    return {folder.name: digests(folder) for folder in (fixture.base, *fixture.tuned)}


def merged(name: str, fixture: Fixture, method: str, folder: Path, threads: int | None) -> dict[str, Any]:
    """The result of each of `cases`."""
    made = {}
    for number, (title, given) in enumerate(cases(name, fixture, method).items()):
        out = folder / f"{method}-{number}"

        def call(given: dict[str, Any] = given, out: Path = out) -> dict[str, Any]:
            api.merge(fixture.base, fixture.tuned, out, method=method, threads=threads, **given)
            if "lambdas" in given:
                return {each.name: digests(each) for each in sorted(out.iterdir())}
            return digests(out)

        made[title] = api.guarded(call)
    return made


def _group(name: str, method: str | None, folder: Path, threads: int | None = 1) -> dict[str, Any]:
    fixture = FIXTURES[name](folder / "models")
    return inputs(fixture) if method is None else merged(name, fixture, method, folder / "out", threads)


def arithmetic(_: Path) -> dict[str, Any]:
    """How torch rounds on this processor, with or without fused multiply-add."""
    a, b = bell(1, 999), bell(2, 999)
    made = {"lerp": torch.lerp(a, b, 0.4), "add": torch.add(a, b, alpha=0.4), "addcmul": torch.addcmul(a, a, b)}
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in made.items()}


def same_arithmetic() -> None:
    """Skip if torch rounds differently here, since the bytes of a merge then differ too."""
    if arithmetic(Path()) != frozen.load("merges").get("arithmetic"):
        pytest.skip(
            f"torch rounds differently here ({torch.backends.cpu.get_cpu_capability()}) than where it was frozen"
        )


METHODS: tuple[str | None, ...] = (None, *api.METHODS)
GROUPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    f"{name}, {method or 'inputs'}": functools.partial(_group, name, method) for name in FIXTURES for method in METHODS
} | {"arithmetic": arithmetic}
"""By name, a function that makes a group of cases in its own folder."""


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "arithmetic"])
def test_a_merge_gives_the_bytes_that_were_frozen(group: str, tmp_path: Path) -> None:
    if not group.endswith(", inputs"):
        same_arithmetic()
    (tmp_path / "out").mkdir()
    frozen.check("merges", group, GROUPS[group](tmp_path))


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    same_arithmetic()
    for method in ("slerp", "dare_ties"):
        made = _group("bfloat16-sharded", method, tmp_path / method, threads=3)
        frozen.check("merges", f"bfloat16-sharded, {method}", made)


def test_every_method_is_frozen_on_several_fixtures() -> None:
    known = frozen.load("merges")
    for method in api.METHODS:
        found = [name for name in FIXTURES if known.get(f"{name}, {method}")]
        assert len(found) >= 3, method
