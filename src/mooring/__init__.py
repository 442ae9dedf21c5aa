"""Keep a fine-tuned language model as safe as the aligned model it came from.

>>> import mooring
>>> mooring.safeguard("base/", "tuned/", task="task.jsonl", out="runs/mine")  # doctest: +SKIP
>>> mooring.merge("base/", "tuned/", lam=0.6, out="merged/")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from mooring import api
from mooring.api import (
    compare,
    generate,
    inspect,
    lm_eval,
    load_results,
    merge,
    mergekit_export,
    mergekit_run,
    open_comparison,
    paper,
    plan,
    prefer,
    push,
    quickstart,
    rejudge,
    report,
    run,
    safeguard,
    safeguard_recipe,
    score,
    select,
    tune,
    verify,
)
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
from mooring.sampling import SamplingParams

if TYPE_CHECKING:
    from mooring.config import Judge, Recipe
    from mooring.data import load_examples, load_prompts
    from mooring.merge_point import MergePoint
    from mooring.merging.inspect import Inspection
    from mooring.pipeline.compare import Comparison, Reply
    from mooring.pipeline.forecast import Forecast
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.records import Choice, Completion, Message, Prompt, Score, Trial, Verdict
    from mooring.reporting.paper.write import Paper
    from mooring.reporting.results import Results
    from mooring.scoring.judges import Agreement

__version__ = "0.1.0"

_LAZY = {
    "Agreement": "mooring.scoring.judges",
    "Choice": "mooring.records",
    "Comparison": "mooring.pipeline.compare",
    "Completion": "mooring.records",
    "Forecast": "mooring.pipeline.forecast",
    "Inspection": "mooring.merging.inspect",
    "Judge": "mooring.config",
    "MergePoint": "mooring.merge_point",
    "Message": "mooring.records",
    "Outcome": "mooring.pipeline.run",
    "Paper": "mooring.reporting.paper.write",
    "Prompt": "mooring.records",
    "Recipe": "mooring.config",
    "Rejudged": "mooring.pipeline.rejudge",
    "Reply": "mooring.pipeline.compare",
    "Results": "mooring.reporting.results",
    "Score": "mooring.records",
    "Trial": "mooring.records",
    "Verdict": "mooring.records",
    "load_examples": "mooring.data",
    "load_prompts": "mooring.data",
}
"""Names whose modules load torch or pydantic, which takes longer than `import mooring` may take (PEP 562)."""

__all__ = [
    "Agreement",
    "Choice",
    "Comparison",
    "Completion",
    "DataError",
    "Event",
    "FetchError",
    "Forecast",
    "Inspection",
    "Judge",
    "MergePoint",
    "Message",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "MooringError",
    "OnEvent",
    "Outcome",
    "OutputError",
    "Paper",
    "Prompt",
    "Recipe",
    "RecipeError",
    "Rejudged",
    "Reply",
    "Results",
    "SamplingParams",
    "Score",
    "Trial",
    "UserError",
    "Verdict",
    "__version__",
    "api",
    "compare",
    "generate",
    "inspect",
    "lm_eval",
    "load_examples",
    "load_prompts",
    "load_results",
    "merge",
    "mergekit_export",
    "mergekit_run",
    "open_comparison",
    "paper",
    "plan",
    "prefer",
    "push",
    "quickstart",
    "rejudge",
    "report",
    "run",
    "safeguard",
    "safeguard_recipe",
    "score",
    "select",
    "to_pandas",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mooring' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
