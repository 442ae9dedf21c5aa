"""Samples and results in the form of lm-evaluation-harness (`--log_samples`): one pair of files for each model."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mooring.jsonio import dumps
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts, asked

FILTER = "none"
"""lm-eval's name of answers that are not filtered."""


def write(found: AnsweredSet, facts: RunFacts, folder: Path) -> Path:
    """Write the samples of one set, as `samples_<task>.jsonl`."""
    path = folder / f"samples_{found.task}.jsonl"
    lines = [dumps(row) for row in _rows(found)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_results(sets: Sequence[AnsweredSet], facts: RunFacts, folder: Path) -> Path:
    """Write the scores of a model on all its sets, as `results.json`."""
    results = {
        each.task: {"alias": each.task}
        | {f"{name},{FILTER}": score.value for name, score in each.totals.items() if score.value is not None}
        for each in sets
    }
    better = {each.task: {name: score.better == "higher" for name, score in each.totals.items()} for each in sets}
    data = {
        "results": results,
        "higher_is_better": better,
        "n-samples": {each.task: {"original": len(each.prompts), "effective": len(each.prompts)} for each in sets},
        "versions": dict.fromkeys(results, 1),
        "config": {
            "model": "mooring",
            "model_args": f"base={facts.base},tuned={facts.tuned},lam={sets[0].point.lam:g}",
        },
        "model_name": f"{facts.name}/{sets[0].point.folder}",
        "mooring_version": facts.version,
    }
    path = folder / "results.json"
    path.write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def _rows(found: AnsweredSet) -> list[dict[str, Any]]:
    numbers = {prompt.id: number for number, prompt in enumerate(found.prompts)}
    rows = []
    for prompt, completions in found.answers:
        scores = found.scores_of(prompt)
        doc = {"id": prompt.id, "prompt": asked(prompt), "reference": prompt.reference, "category": prompt.category}
        texts = [completion.answer for completion in completions]
        rows.append(
            {
                "doc_id": numbers[prompt.id],
                "doc": doc,
                "target": prompt.reference or "",
                "arguments": {"gen_args_0": {"arg_0": asked(prompt), "arg_1": {}}},
                "resps": [texts],
                "filtered_resps": texts[:1],
                "filter": FILTER,
                "metrics": list(scores),
                "doc_hash": _hash(json.dumps(doc, ensure_ascii=True)),
                "prompt_hash": _hash(asked(prompt)),
                "target_hash": _hash(prompt.reference or ""),
                **scores,
            }
        )
    return rows


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
