"""Keep a fine-tuned language model as safe as the aligned model it came from.

>>> import mooring
>>> mooring.safeguard("base/", "tuned/", task="task.jsonl", out="runs/mine")  # doctest: +SKIP
>>> mooring.merge("base/", "tuned/", lam=0.6, out="merged/")  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from mooring import api
from mooring.api import *  # noqa: F403 — api.__all__
from mooring.errors import (
    DataError,
    FetchError,
    MismatchError,
    MissingExtraError,
    ModelError,
    MooringError,
    OutputError,
    RecipeError,
    UserError,
)
from mooring.events import Event, OnEvent
from mooring.export import to_pandas
from mooring.merge_point import MergePoint
from mooring.records import (
    Choice,
    Completion,
    ExtractedLora,
    Gain,
    LogitComparison,
    MergeCheck,
    Message,
    Prompt,
    RunVerdict,
    Score,
    Trial,
    Verdict,
    VerdictCheck,
)
from mooring.sampling import SamplingParams

if TYPE_CHECKING:
    from mooring.config import Judge, Recipe
    from mooring.data import load_examples, load_prompts
    from mooring.merging.inspect import Inspection
    from mooring.models.to_gguf import Exported
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.pipeline.compare_evals import EvalDifference
    from mooring.pipeline.doctor import Finding
    from mooring.pipeline.extensions import PluginInfo
    from mooring.pipeline.forecast import Forecast
    from mooring.pipeline.preview import DataPreview, Lengths
    from mooring.pipeline.progress_bars import ProgressBars
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.pipeline.verify_served import ServedMeasure, ServedVerdict
    from mooring.reporting.comparison.records import MethodComparison
    from mooring.reporting.judge_error import Corrected, JudgeError
    from mooring.reporting.paper.write import Paper
    from mooring.reporting.results import Results
    from mooring.scoring.judges import Agreement

__version__ = "0.1.0"

_LAZY = {
    "mooring.config": ("Judge", "Recipe"),
    "mooring.data": ("load_examples", "load_prompts"),
    "mooring.merging.inspect": ("Inspection",),
    "mooring.models.to_gguf": ("Exported",),
    "mooring.pipeline.compare": ("Comparison", "Reply"),
    "mooring.pipeline.compare_evals": ("EvalDifference",),
    "mooring.pipeline.doctor": ("Finding",),
    "mooring.pipeline.extensions": ("PluginInfo",),
    "mooring.pipeline.forecast": ("Forecast",),
    "mooring.pipeline.preview": ("DataPreview", "Lengths"),
    "mooring.pipeline.progress_bars": ("ProgressBars",),
    "mooring.pipeline.rejudge": ("Rejudged",),
    "mooring.pipeline.run": ("Outcome",),
    "mooring.pipeline.verify_served": ("ServedMeasure", "ServedVerdict"),
    "mooring.reporting.comparison.records": ("MethodComparison",),
    "mooring.reporting.judge_error": ("Corrected", "JudgeError"),
    "mooring.reporting.paper.write": ("Paper",),
    "mooring.reporting.results": ("Results",),
    "mooring.scoring.judges": ("Agreement",),
}
"""Modules that load torch or pydantic, which takes longer than `import mooring` may take (PEP 562), and their names."""

__all__ = [
    "Agreement", "Choice", "Comparison", "Completion", "Corrected", "DataError", "DataPreview", "EvalDifference",
    "Event", "Exported", "ExtractedLora", "FetchError", "Finding", "Forecast", "Gain", "Inspection", "Judge",
    "JudgeError", "Lengths", "LogitComparison", "MergeCheck", "MergePoint", "Message", "MethodComparison",
    "MismatchError", "MissingExtraError", "ModelError", "MooringError", "OnEvent", "Outcome", "OutputError", "Paper",
    "PluginInfo", "ProgressBars", "Prompt", "Recipe", "RecipeError", "Rejudged", "Reply", "Results", "RunVerdict",
    "SamplingParams", "Score", "ServedMeasure", "ServedVerdict", "Trial", "UserError", "Verdict", "VerdictCheck",
    "__version__", "api", "load_examples", "load_prompts", "to_pandas",
]  # fmt: skip
__all__ += api.__all__


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'mooring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
