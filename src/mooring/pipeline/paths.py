"""The layout of a run folder: the only place that knows where each file of a run is."""

import dataclasses
from pathlib import Path

from mooring.merge_point import MergePoint
from mooring.records import Half, Kind


@dataclasses.dataclass(frozen=True, slots=True)
class RunPaths:
    """The paths of a run folder.

    Args:
        folder: The run folder.
    """

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe, every default written out."""
        return self.folder / "recipe.yaml"

    @property
    def align(self) -> Path:
        """The LoRA adapter that makes the base refuse."""
        return self.folder / "align"

    @property
    def base(self) -> Path:
        """The base that was aligned by the run."""
        return self.folder / "base"

    @property
    def tuned(self) -> Path:
        """The LoRA adapter of the task."""
        return self.folder / "tuned"

    @property
    def pair(self) -> Path:
        """Warnings about base and tuned model."""
        return self.folder / "pair.json"

    @property
    def changes(self) -> Path:
        """How far tuning moved each layer and module."""
        return self.folder / "changes.json"

    @property
    def search(self) -> Path:
        """What the bisection looked at."""
        return self.folder / "search.json"

    @property
    def choice(self) -> Path:
        """The chosen single λ, and why."""
        return self.folder / "choice.json"

    @property
    def by_module(self) -> Path:
        """What the search for λ by module tried and took."""
        return self.folder / "by_module.json"

    @property
    def model(self) -> Path:
        """The chosen model."""
        return self.folder / "model"

    @property
    def model_card(self) -> Path:
        """The model card in the folder of the chosen model."""
        return self.model / "README.md"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.folder / "report"

    @property
    def results(self) -> Path:
        """Everything that the report shows."""
        return self.report / "results.json"

    @property
    def scratch(self) -> Path:
        """Merged models that are written for a while."""
        return self.folder / "scratch"

    def measurements(self, point: MergePoint) -> Path:
        """The folder with all that one model was asked and answered."""
        return self.folder / "completions" / point.folder

    def completions(self, point: MergePoint, name: Kind, split: Half) -> Path:
        """One model's responses to one set."""
        return self.measurements(point) / f"{name}-{split}.jsonl"

    def partial_completions(self, point: MergePoint, name: Kind, split: Half, part: int) -> Path:
        """Its responses to some prompts of the set: the `part`-th batch that a search asked for, from 1."""
        return self.measurements(point) / f"{name}-{split}.part-{part}.jsonl"

    def verdicts(self, point: MergePoint, name: Kind, split: Half, judge: str, part: str = "") -> Path:
        """One judge's verdicts on these responses; `part` names a selection of the prompts."""
        return self.measurements(point) / self.verdicts_name(name, split, judge, part)

    def likelihood(self, point: MergePoint, split: Half) -> Path:
        """How likely one model finds the references of the task."""
        return self.measurements(point) / f"likelihood-{split}.jsonl"

    def trial(self, point: MergePoint, split: Half) -> Path:
        """All scores of one model on one split."""
        return self.measurements(point) / f"trial-{split}.json"

    def lm_eval(self, point: MergePoint) -> Path:
        """The scores of lm-evaluation-harness."""
        return self.measurements(point) / "lm-eval.json"

    def lm_eval_answers(self, point: MergePoint) -> Path:
        """The answers that lm-evaluation-harness asked for, kept so that it can resume."""
        return self.measurements(point) / "lm-eval-answers.jsonl"

    def lm_eval_samples(self, point: MergePoint) -> Path:
        """The samples of lm-evaluation-harness."""
        return self.measurements(point) / "lm-eval-samples.jsonl"

    def rejudged(self, point: MergePoint, name: Kind, split: Half, judge: str, key: str) -> Path:
        """Verdicts of a judge that the run itself did not use; `key` tells apart judges of one name."""
        return self.folder / "rejudged" / f"{judge}-{key}" / point.folder / self.verdicts_name(name, split, judge)

    @staticmethod
    def verdicts_name(name: Kind, split: Half, judge: str, part: str = "") -> str:
        """The name of a file of verdicts."""
        return f"verdicts-{name}-{split}-{judge}{'.part-' + part if part else ''}.jsonl"
