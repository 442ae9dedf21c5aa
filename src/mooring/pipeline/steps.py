"""The steps of a run: what each does, what it depends on, and the key that decides whether it is done again."""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mooring.baselines import Baseline
from mooring.merge_point import MergePoint, Series, plain
from mooring.records import Half, SetName
from mooring.sampling import SamplingParams


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """A model that is not known until the run has come that far, such as the chosen one.

    Attributes:
        label: What people call it meanwhile.
        after: The id of the step that decides it.
    """

    label: str
    after: str

    @property
    def key(self) -> str:
        """Stands in ids for the key of the point."""
        return f"<{self.label}>"


Point: TypeAlias = MergePoint | Slot

# --- What a step does ---------------------------------------------------------------------------------------------


TuneStage = Literal["align", "tune"]


class Stage(enum.Enum):
    """A step that a run has at most once, and that has no parameters."""

    MERGE_ALIGNED = "align/merge"
    CHECK_PAIR = "check_pair"
    MEASURE_CHANGE = "measure_change"
    BISECT = "bisect"
    SELECT = "select"
    SEARCH_GRADIENT = "search_gradient"
    SEARCH_MODULES = "search_modules"
    CHECK_MODEL = "check_model"
    FORGETTING = "forgetting"
    REPORT = "report"


@dataclasses.dataclass(frozen=True, slots=True)
class Tune:
    """Tune a LoRA adapter: `align` makes the base refuse, `tune` teaches the task; a baseline does so more gently."""

    stage: TuneStage
    baseline: Baseline | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Generate:
    """Generate one model's responses to one set; or those of the `turn`-th turn, from 1, on the way to the last one."""

    point: Point
    name: SetName
    split: Half
    turn: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Likelihood:
    """Measure how likely one model finds the references of the task."""

    point: Point
    split: Half


@dataclasses.dataclass(frozen=True, slots=True)
class LmEval:
    """Run lm-evaluation-harness on one model."""

    point: Point


@dataclasses.dataclass(frozen=True, slots=True)
class Judge:
    """Judge one model's responses to one set."""

    point: Point
    name: SetName
    split: Half
    judge: str


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """Compute all scores of one model on one split."""

    point: Point
    split: Half


@dataclasses.dataclass(frozen=True, slots=True)
class SelectSeries:
    """Choose λ of one series of a comparison."""

    series: Series


@dataclasses.dataclass(frozen=True, slots=True)
class WriteModel:
    """Write the chosen model."""

    point: Point


Work: TypeAlias = Stage | Tune | Generate | Likelihood | LmEval | Judge | Score | SelectSeries | WriteModel

# --- What a step depends on ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class StepKey:
    """Stands for the key of an earlier step."""

    id: str


@dataclasses.dataclass(frozen=True, slots=True)
class SourceKey:
    """Stands for the digest of a model that the recipe names.

    `name` is the tuned model's, if there are several. For the models of a merge it covers the weights and the files
    that turn text into tokens; for `bert_score` the weights of the encoder; for `lm_eval` the version of
    lm-evaluation-harness and the rows of its tasks. The digest is measured when a key is needed, not when the steps are
    planned.
    """

    role: Literal["base", "tuned", "unaligned", "safety_adapter", "bert_score", "lm_eval"]
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class JudgeKey:
    """Stands for all that a judge's verdicts depend on: its model's digest, engine and versions."""

    judge: str


ModelKey: TypeAlias = StepKey | SourceKey


class Inputs:
    """All that the outputs of a step depend on: a frozen dataclass of plain values, keys, and other inputs."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TuneInputs(Inputs):
    """What an adapter depends on."""

    base: ModelKey
    examples: str
    ordinary: str
    config: Mapping[str, Any]
    system: str | None
    seed: int
    dtype: str
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MergeInputs(Inputs):
    """What a merged model depends on. Base and tuned model depend on no method, and on no further models."""

    base: ModelKey
    tuned: ModelKey | Sequence[ModelKey] | None = None
    method: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    references: Sequence[SourceKey] = ()
    point: MergePoint | None = None
    decided_by: StepKey | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairInputs(Inputs):
    """What statements about a pair of models depend on."""

    base: ModelKey
    tuned: ModelKey | Sequence[ModelKey]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckInputs(Inputs):
    """What the check of the written model depends on."""

    models: PairInputs
    written: StepKey
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineInputs(Inputs):
    """What the numbers of an engine depend on, besides the model and the prompts."""

    engine: str
    dtype: str
    device: str
    batch_size: int | None
    tensor_parallel: int
    max_model_len: int | None
    enforce_eager: bool
    served_model: str | None
    system: str | None
    thinking: str | None
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateInputs(Inputs):
    """What responses depend on; with `answers`, also on responses of an earlier step, which the prompts contain."""

    model: MergeInputs
    prompts: str
    sampling: SamplingParams
    drafts: bool
    engine: EngineInputs
    answers: StepKey | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodInputs(Inputs):
    """What likelihoods depend on."""

    model: MergeInputs
    examples: str
    engine: EngineInputs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalInputs(Inputs):
    """What the scores of lm-evaluation-harness depend on."""

    model: MergeInputs
    tasks: Sequence[str]
    data: SourceKey
    limit: int | None
    seed: int
    engine: EngineInputs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInputs(Inputs):
    """What verdicts depend on. Responses of a search may come from several steps; their digest is used."""

    completions: StepKey | str
    prompts: str
    judge: JudgeKey
    thoughts: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreInputs(Inputs):
    """What scores depend on."""

    measurements: Sequence[StepKey]
    metrics: Sequence[str]
    options: Mapping[str, Any]
    encoder: SourceKey | None
    seed: int
    versions: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BisectInputs(Inputs):
    """What a bisection depends on."""

    models: PairInputs
    config: Mapping[str, Any]
    prompts: Mapping[SetName, str]
    judges: Sequence[JudgeKey]
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelectInputs(Inputs):
    """What the choice of a single λ depends on."""

    scores: Sequence[StepKey]
    config: Mapping[str, Any]
    metric: str | None
    labels: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchGradientInputs(Inputs):
    """What a search for λ by gradient depends on."""

    choice: StepKey
    models: PairInputs
    prompts: Mapping[str, str]
    groups: str
    engine: EngineInputs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchModulesInputs(Inputs):
    """What a search for λ by module depends on."""

    choice: StepKey
    changes: StepKey
    lambdas: Sequence[float]
    config: Mapping[str, Any]
    tried: Sequence[StepKey] = ()
    gradient: StepKey | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingInputs(Inputs):
    """What the measurement of forgetting depends on."""

    models: Sequence[MergeInputs]
    prompts: str
    engine: EngineInputs
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs(Inputs):
    """What the report depends on."""

    steps: Sequence[StepKey]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    labels: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a run.

    Attributes:
        id: A stable name, for the ledger and for events: `generate/0.4/safety/validation`.
        label: The step in words.
        work: What it does.
        inputs: All that its outputs depend on.
        outputs: The files and folders that it writes.
        units: How many units of work it has; None if only the step itself will tell.
        unit: What is counted, such as `responses`.
        pace: Steps with the same pace take about the same time per unit; empty if the step takes next to no time.
    """

    id: str
    label: str
    work: Work
    inputs: Inputs
    outputs: Sequence[Path]
    units: int | None = 1
    unit: str = "steps"
    pace: str = ""


def built_on(inputs: Any) -> set[str]:
    """The ids of the steps whose keys are among some inputs."""
    if isinstance(inputs, StepKey):
        return {inputs.id}
    if dataclasses.is_dataclass(inputs):
        parts: Any = [getattr(inputs, field.name) for field in dataclasses.fields(inputs)]
    else:
        parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return {id for part in parts for id in built_on(part)}


def digest_of(value: Any) -> str:
    """The SHA-256 of plain JSON values, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Keys:
    """The keys of a run's steps: the digest of all that a step depends on, earlier steps included.

    `steps` returns the steps by id, more as the run goes on. `measure` returns what a model or a judge depends on, as
    plain JSON values; it is called at most once for each.
    """

    def __init__(
        self, steps: Callable[[], Mapping[str, Step]], measure: Callable[[SourceKey | JudgeKey], object]
    ) -> None:
        self._steps, self._measure = steps, measure
        self._keys: dict[tuple[str, str], str] = {}
        self._measured: dict[SourceKey | JudgeKey, object] = {}

    def of(self, step: Step) -> str:
        """The key of a step."""
        known = (step.id, repr(step.inputs))
        if known not in self._keys:
            plain = self._plain(step.inputs)
            self._keys[known] = digest_of([step.id.partition("/")[0], type(step.inputs).__name__, plain])
        return self._keys[known]

    def model(self, inputs: MergeInputs) -> str:
        """The key of a model: the digest of all that it is made from."""
        return digest_of(self._plain(inputs))

    def _plain(self, value: Any) -> Any:
        """Inputs as JSON values, in which keys of earlier steps and digests of models take the place of references."""
        if isinstance(value, StepKey):
            return self.of(self._steps()[value.id])
        if isinstance(value, SourceKey | JudgeKey):
            if value not in self._measured:
                self._measured[value] = self._measure(value)
            return self._measured[value]
        if isinstance(value, MergePoint):
            return plain(value).key  # what it is a point of is among the other inputs: the method and the models
        if dataclasses.is_dataclass(value):
            return {field.name: self._plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): self._plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(each) for each in value]
        return value
