"""The layout of a run folder: the only place that knows where each file of a run is."""

from pathlib import Path

from mooring.merge_point import MergePoint, Series
from mooring.records import Half, SetName


class RunPaths:
    """The paths of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"  # every default written out
        self.align = folder / "align"  # the LoRA adapter that makes the base refuse
        self.base = folder / "base"  # the base that was aligned by the run
        self.tuned = folder / "tuned"  # the LoRA adapter of the task
        self.baselines = folder / "baselines"  # the adapters of gentler tunings
        self.pair = folder / "pair.json"  # warnings about base and tuned model
        self.changes = folder / "changes.json"  # how far tuning moved each layer and module
        self.search = folder / "search.json"  # the trace of the bisection
        self.choice = folder / "choice.json"  # the chosen single λ, and why
        self.by_module = folder / "by_module.json"  # the search for λ by module: what was tried and taken
        self.gradient = folder / "gradient.json"  # the search for λ by gradient: losses and λ
        self.forgetting = folder / "forgetting.json"  # how far each model has moved on ordinary requests
        self.model = folder / "model"  # the chosen model
        self.labels = folder / "labels.jsonl"  # people's labels of answers; no step of the run writes it
        self.check = folder / "check.json"  # whether the chosen model computes what it should
        self.model_card = self.model / "README.md"
        self.report = folder / "report"
        self.results = self.report / "results.json"  # everything that the report shows
        self.scratch = folder / "scratch"  # merged models that are written temporarily
        self.batch_size = folder / "batch_size.json"  # only if one was found by halving
        self.logs = folder / "logs"  # what the engines print: `models.log`, and a file for each judge

    def baseline(self, key: str) -> Path:
        """The LoRA adapter of a gentler tuning."""
        return self.baselines / key

    def by_product(self, step_key: str) -> Path:
        """An adapter that another training made on the way, until the step with this key takes it."""
        return self.baselines / f".made-{step_key[:16]}"

    def choice_of(self, series: Series) -> Path:
        """The chosen λ of one series of a comparison, and why."""
        return self.folder / "choices" / f"{series.key}.json"

    def measurements(self, point: MergePoint) -> Path:
        """The folder of everything measured on one model."""
        return self.folder / "completions" / point.folder

    def completions(self, point: MergePoint, name: SetName, split: Half, part: int = 0, turn: int = 0) -> Path:
        """One model's responses to one set; or to some of its prompts: the `part`-th batch of a search, from 1; or the
        responses on the way, of the `turn`-th turn of each conversation, from 1."""
        which = f".part-{part}" if part else f".turn-{turn}" if turn else ""
        return self.measurements(point) / f"{_in_files(name)}-{split}{which}.jsonl"

    def verdicts(self, point: MergePoint, name: SetName, split: Half, judge: str, part: str = "") -> Path:
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
        """The answers to lm-evaluation-harness's requests so far, from which it resumes."""
        return self.measurements(point) / "lm-eval-answers.jsonl"

    def lm_eval_samples(self, point: MergePoint) -> Path:
        """The samples of lm-evaluation-harness."""
        return self.measurements(point) / "lm-eval-samples.jsonl"

    def rejudged(self, point: MergePoint, name: SetName, split: Half, judge: str, key: str) -> Path:
        """Verdicts of a judge that the run itself did not use; `key` tells apart judges of one name."""
        return self.folder / "rejudged" / f"{judge}-{key}" / point.folder / self.verdicts_name(name, split, judge)

    @staticmethod
    def verdicts_name(name: SetName, split: Half, judge: str, part: str = "") -> str:
        """The name of a file of verdicts."""
        return f"verdicts-{_in_files(name)}-{split}-{judge}{'.part-' + part if part else ''}.jsonl"


def _in_files(name: SetName) -> str:
    """The name of a set in names of files, where some systems allow no colon."""
    return name.replace(":", "-")
