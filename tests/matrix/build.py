"""Try every architecture of the installed transformers and write docs/models.md.

    PYTHONPATH=tests python -m matrix.build                  # all architectures: half an hour on one core
    PYTHONPATH=tests python -m matrix.build qwen3_moe gemma3 # some again, the others as they were
    PYTHONPATH=tests python -m matrix.build --page           # the page alone, from the outcomes that there are

Outcomes are kept in tests/matrix/results.json, so that an interrupted run continues, and so that a newer version of
transformers is tried by removing that file.
"""

import ast
import dataclasses
import functools
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from matrix.cells import KINDS, WAYS, cells
from matrix.tiny import architectures, build_tokenizer, tiny_model
from matrix.vllm import FILE as REGISTRY

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests/matrix/results.json"
PAGE = ROOT / "docs/models.md"
_SECONDS = 240
"""For one architecture."""
_COMMON = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "phi3", "olmo2", "smollm3", "gpt2"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "gpt_oss", "deepseek_v3", "glm4_moe", "llama4", "llama4_text"),
    *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "mistral3", "internvl", "llava", "idefics3"),
    *("granite", "granitemoe", "cohere2", "falcon", "gpt_neox", "starcoder2", "stablelm", "nemotron", "olmoe", "phi"),
    *("mamba", "jamba", "lfm2", "ernie4_5", "ernie4_5_moe", "hunyuan_v1_moe", "minimax_m2", "seed_oss", "exaone4"),
    *("gemma4", "gemma4_text", "glm4", "helium", "apertus", "arcee", "olmo3", "paligemma", "smolvlm", "bloom", "opt"),
)
"""Those that are tried first."""
_STARTED = ROOT / "tests/engines/test_vllm_models.py"
_UNTRIED = "Their configurations could not be made small automatically, or they do not answer a text alone:"
_MARKS = {"works": "✓", "unloaded": "✓ᵘ", "unread": "✓ᵖ", "reloads": "↻", "refused": "–", "none": " ", "wrong": "✗"}


class _TooSlowError(Exception):
    """An architecture takes too long."""


def main(names: list[str]) -> None:
    """Try architectures, and write the page."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known = set(architectures())
    todo = (
        []
        if names == ["--page"]
        else names
        or [name for name in (*_COMMON, *sorted(known - {*_COMMON})) if name in known and name not in results]
    )
    for name in todo:
        results[name] = attempt(name)
        wrong = _wrong(results[name])
        print(name, results[name].get("reason") or "tried", *wrong, sep="\n  ", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    PAGE.write_text(page(results), encoding="utf-8")


def attempt(name: str) -> dict[str, Any]:
    """The outcomes for an architecture, as JSON; or the reason why there is no tiny model of it."""
    try:
        signal.alarm(_SECONDS)
        model = tiny_model(name)
    except Exception as error:  # an architecture may fail in any way
        return {"reason": str(error).strip().split("\n")[0][:160] or type(error).__name__}
    finally:
        signal.alarm(0)
    kind = type(model).__name__
    with tempfile.TemporaryDirectory() as folder:
        found = cells(model, build_tokenizer(), Path(folder))
        outcomes = {k: {w: dataclasses.asdict(cell) for w, cell in ways.items()} for k, ways in found.items()}
    text = json.dumps(outcomes).replace(f"{folder}/", "")
    return {"class": kind, "cells": json.loads(text)}


def _wrong(result: dict[str, Any]) -> list[str]:
    cells = [(f"{k} {w}", cell) for k, ways in result.get("cells", {}).items() for w, cell in ways.items()]
    return [f"{where}: {cell['reason']}" for where, cell in cells if cell["outcome"] == "wrong"]


def page(results: dict[str, Any]) -> str:
    """docs/models.md."""
    tried = {name: result for name, result in sorted(results.items()) if "cells" in result}
    unknown = sorted(results.keys() - tried.keys())
    todo = {*architectures()} - {*results}
    listed: dict[str, Any] = json.loads(REGISTRY.read_text())
    reasons: dict[str, int] = {}
    rows = []
    for name, result in tried.items():
        row = [f"`{name}`", result["class"]]
        for kind in KINDS:
            ways = result["cells"][kind]
            row += [_mark(ways[way], reasons) for way in WAYS if (kind, way) != ("full", "adapter")]
        rows.append([*row, _vllm_mark(name, result["class"], listed)])
    heads = [f"{kind} {way}" for kind in KINDS for way in WAYS if (kind, way) != ("full", "adapter")] + ["vLLM"]
    lines = [
        "# Models",
        "",
        "What works with which architecture, as tried on tiny random models of the architectures that generate text in",
        f"transformers {transformers.__version__} with PEFT {peft.__version__} (`make matrix`): {len(tried)} of them.",
        *([f"{count} are not tried yet: the next `make matrix` goes on with them."] if (count := len(todo)) else []),
        "",
        "Tuned models:",
        *(f"- `{kind}`: {what}." for kind, what in KINDS.items()),
        "",
        "Ways to merge them, on the CPU:",
        *(f"- `{way}`: {what}." for way, what in WAYS.items()),
        "",
        "✓: the result's logits are those of the tuned model (transformers, PEFT) at λ = 1, its weights at λ = 0.5 are",
        "those of a float64 reference, and an adapter's logits those of the merged model. ↻: works, but the model is",
        "loaded again for each λ. –: refused before anything is written, for the reason with this number. Empty: PEFT",
        "makes no such adapter. ✓ᵘ: equals PEFT's `merge_and_unload`, from which PEFT's own forward pass differs here.",
        "✓ᵖ: its merge equals the merged model; PEFT itself reads only a part of such adapters, also of those that it",
        "wrote, so that Mooring refuses to run them as adapters (`model.adapter_names`).",
        "A whole model has no adapter to write.",
        "",
        *_vllm_lines(listed),
        "",
        "| `model_type` | class | " + " | ".join(heads) + " |",
        "|" + "---|" * (len(heads) + 2),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(["## Reasons", *(f"{number}. {reason}" for reason, number in reasons.items()), ""] if reasons else []),
        *(["## No tiny model", _UNTRIED, ", ".join(f"`{name}`" for name in unknown) + ".", ""] if unknown else []),
    ]
    return "\n".join(lines)


def _vllm_lines(listed: dict[str, Any]) -> list[str]:
    """What the marks in the column of vLLM mean."""
    return [
        f"vLLM {listed['version']}, by two kinds of evidence. Started: `✓`, real vLLM ran a merged model and a merged",
        "adapter (of mixtures, the model) of the architecture, and answered as transformers does",
        "(tests/engines/test_vllm_models.py). Listed, and not started: `own`, vLLM's registry has a class of its own;",
        "`hf`, it runs the class of transformers; `–`, it dropped the class, and refuses it or falls back on that of",
        "transformers; empty, its registry does not name the class. A run asks the same of vLLM in all of them:",
        "adapters that take turns, or weights replaced in place, and a new start only for a configuration of its own",
        "([engines.md](engines.md)).",
    ]


def _vllm_mark(name: str, kind: str, listed: dict[str, Any]) -> str:
    if name in _started():
        return "✓"
    marks = {"own": "own", "transformers": "hf", "dropped": "–"}
    return next((mark for table, mark in marks.items() if kind in listed[table]), " ")


@functools.cache
def _started() -> frozenset[str]:
    """The types of configuration that tests start in vLLM."""
    for node in ast.parse(_STARTED.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "KINDS":
            assert isinstance(node.value, ast.Dict)
            kinds = [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
            return frozenset(getattr(transformers, f"{kind}Config").model_type for kind in kinds)
    raise RuntimeError(f"{_STARTED}: has no KINDS")


def _mark(cell: dict[str, str], reasons: dict[str, int]) -> str:
    mark = _MARKS[cell["outcome"]]
    if cell["outcome"] not in ("refused", "wrong"):
        return mark
    tail = cell["reason"].partition(": ")[2] or cell["reason"]
    reason = f"`{cell['code']}`: {tail}"
    return f"{mark} {reasons.setdefault(reason, len(reasons) + 1)}"


def _too_slow(*_: object) -> None:
    raise _TooSlowError("it takes too long")


if __name__ == "__main__":
    main(sys.argv[1:])
