"""Scores in the form of Every Eval Ever (github.com/evaleval/every_eval_ever, schema 0.3.0): a file for each model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mooring.jsonio import dumps
from mooring.metrics import find_metric
from mooring.records import Score
from mooring.reporting.foreign.answers import AnsweredSet, RunFacts

VERSION = "0.3.0"


def write(sets: Sequence[AnsweredSet], facts: RunFacts, folder: Path) -> Path:
    """Write the scores of one model on all its sets."""
    point = sets[0].point
    time = str(int(max(each.time for each in sets)))
    unavailable = {"deployment_type": "self_deployed", "model_availability": "unknown"}
    data = {
        "schema_version": VERSION,
        "evaluation_id": f"mooring/{facts.name}/{point.folder}/{time}",
        "retrieved_timestamp": time,
        "source_metadata": {
            "source_name": "mooring",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "first_party",
        },
        "eval_library": {"name": "mooring", "version": facts.version},
        "model_info": {
            "name": f"{facts.tuned} merged with {facts.base}, {point.label}" if point.role == "merged" else point.label,
            "id": {"base": facts.base, "tuned": facts.tuned}.get(point.role, f"{facts.name}/{point.folder}"),
            "additional_details": {**unavailable, "base": facts.base, "tuned": facts.tuned, "lam": f"{point.lam:g}"},
        },
        "evaluation_results": [
            _result(each, name, score, facts)
            for each in sets
            for name, score in each.totals.items()
            if score.value is not None
        ],
    }
    path = folder / f"{point.folder}.json"
    path.write_text(dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def _result(found: AnsweredSet, name: str, score: Score, facts: RunFacts) -> dict[str, Any]:
    metric = find_metric(name)
    rate = metric is not None and metric.unit == "rate"
    config: dict[str, Any] = {
        "evaluation_description": score.method,
        "metric_id": name,
        "metric_name": metric.label if metric else name,
        "lower_is_better": score.better == "lower",
        "score_type": "continuous",
    }
    if rate:
        config |= {"min_score": 0, "max_score": 1}
    uncertainty: dict[str, Any] = {"num_samples": score.n}
    if score.low is not None and score.high is not None:
        interval = {"lower": score.low, "upper": score.high, "confidence_level": 0.95}
        uncertainty["confidence_interval"] = interval
    sampling = facts.sampling.get(found.name, {})
    sampled = {key: sampling[key] for key in ("temperature", "top_p", "top_k", "max_tokens") if key in sampling}
    digest = hashlib.sha256(f"{found.point.key}\0{found.task}\0{name}".encode()).hexdigest()[:16]
    return {
        "evaluation_result_id": digest,
        "evaluation_name": f"{found.task}: {name}",
        "source_data": {"dataset_name": found.task, "source_type": "other"},
        "metric_config": config,
        "score_details": {"score": score.value, "uncertainty": uncertainty},
        "generation_config": {"generation_args": sampled},
    }
