"""The frozen records that pass between stages, and their JSON Lines form."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from mooring import jsonio
from mooring.bounded import LINE
from mooring.errors import DataError
from mooring.export import Record
from mooring.files import atomic_text
from mooring.jsonio import EDITED, convert, loads, read_as, read_lines
from mooring.merge_point import MergePoint
from mooring.stats import Difference

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["safety", "over_refusal", "ordinary", "task", "quality"]
"""What a set of prompts is for: requests to refuse, harmless ones that sound harmful, ordinary ones, a task with
references, and requests whose answers are compared in pairs (scored as `ordinary` where refusals are counted)."""
SetName: TypeAlias = str
"""The name of a set of prompts: a `Kind`, or one under an attack (`mooring.attacks.names`)."""
Split = Literal["tune", "validation", "test"]
Half = Literal["validation", "test"]
"""The splits on which models are scored: λ is chosen on one and reported on the other."""
Better = Literal["higher", "lower"]


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall(Record):
    """A call of a function, in a turn of the assistant.

    Attributes:
        name: The function's name.
        arguments: Its arguments, as the text of a JSON object.
        id: What the turn with the result names it by, if anything.
    """

    name: str
    arguments: str
    id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Message(Record):
    """One turn of a conversation.

    Attributes:
        role: Who says it.
        content: What is said.
        tool_calls: The functions that it calls.
        tool_call_id: Of the role `tool`: the id of the call that this is the result of.
        name: Of the role `tool`: the function's name.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Record):
    """What a model is asked, and, where it is known, what it should answer.

    Attributes:
        id: Unique within its set.
        messages: The conversation so far; the last turn is the user's.
        reference: The right (or the taught) response.
        category: A group to report by.
        origin: Where it came from, `file:line`, for error messages.
        rendered: The whole text that a model sees, where it is fixed byte for byte (a judge's template): it takes the
            place of the chat template's rendering of `messages`, and no system prompt is added.
        extra: What a task's metric needs besides, such as a program's tests; plain strings.
        prefill: How the answer begins: the model continues it. It may not be able to on a server, or in thoughts.
        prefill_tokens: The most tokens of `prefill` that are used; None for all.
        variant_of: The id of the prompt that this is one of several variants of, under an attack.
        follow_ups: What the user says next, after each answer; the last answer counts.
        tools: The functions that the model may call, as OpenAI's API and chat templates have them.
        reference_turn: The response as a turn, if it calls functions; `reference` is then its text (`calls.as_text`).
    """

    id: str
    messages: tuple[Message, ...]
    reference: str | None = None
    category: str | None = None
    origin: str = ""
    rendered: str | None = None
    extra: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefill: str | None = None
    prefill_tokens: int | None = None
    variant_of: str | None = None
    follow_ups: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    reference_turn: Message | None = None

    @property
    def place(self) -> str:
        """The prompt in error messages: its origin, or its id if that is not known."""
        return self.origin or f"prompt {self.id}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Completion(Record):
    """What a model answered.

    Attributes:
        prompt_id: The prompt's `id`.
        text: The answer, special tokens removed and without the model's thoughts; empty if it never came to one.
        tokens: Tokens generated, thoughts and the end-of-turn token included.
        finish: `stop` where the model ended its turn, `length` where the limit did, and `lost` where there is no
            answer, since three workers of a cluster died of it.
        made_by: Model digest, engine, versions and settings.
        sample: Which of several answers to the same prompt, from 0.
        thoughts: What the model thought before it answered, without its marks; None if it did not think.
        prefill: What the answer began with before the model wrote `text`; empty if it was asked for the whole answer.
    """

    prompt_id: str
    text: str
    tokens: int
    finish: Literal["stop", "length", "lost"]
    made_by: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sample: int = 0
    thoughts: str | None = None
    prefill: str = ""

    @property
    def answer(self) -> str:
        """The whole answer: `text` after what it began with."""
        return self.prefill + self.text

    @property
    def unanswered(self) -> bool:
        """Whether the model thought and gave no answer, mostly because the limit of tokens came first; or was lost."""
        return self.finish == "lost" or (self.thoughts is not None and not self.text.strip())

    @property
    def key(self) -> str:
        """See `sample_key`."""
        return sample_key(self.prompt_id, self.sample)


def sample_key(prompt_id: str, sample: int = 0) -> str:
    """What names one answer among all: the prompt's id, and which sample it is where that is not the first.

    With the seed it seeds the sampling.
    """
    return f"{prompt_id}\0{sample}" if sample else prompt_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood(Record):
    """How surprised a model is by a reference response: −Σ log p(yᵢ|x, y₍<ᵢ₎) in nats, over `tokens` tokens."""

    prompt_id: str
    nll: float
    tokens: int

    @property
    def key(self) -> str:
        """The prompt's id."""
        return self.prompt_id


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Record):
    """What a safety judge says of one completion.

    Attributes:
        prompt_id: The prompt's `id`.
        harmful: Whether the response is harmful; `None` where the judge's answer could not be read (a miss).
        refused: Whether it refuses; `None` where that could not be read, or the judge does not say.
        judge: The judge's name and version.
        why: The rule that fired, or why the answer could not be read, in a word or two.
        raw: The judge's own answer, as it came: untrusted.
        category: The kind of harm, where the judge names one.
    """

    prompt_id: str
    harmful: bool | None
    refused: bool | None
    judge: str
    why: str = ""
    raw: str = ""
    category: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score(Record):
    """A number with its 95 % interval.

    Attributes:
        name: `asr`, `refusal`, `over_refusal`, `ordinary_refusal`, `call_match`, `exact_match`, `response_loss`.
        value: `None` where it is undefined (nothing to divide by).
        n: How many prompts it rests on.
        better: Which direction is good.
        method: How it was measured (the judge or the metric), shown wherever the number is.
        details: Counts behind it, such as `yes`, `total`, `miss`.
        each: Of a task score, what each prompt scored, by its id: the score is their mean, or Σ each / Σ weights.
        weights: By id, what `each` is a sum over, such as tokens; 1 where it is not given.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    better: Better
    method: str
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    each: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row, without the scores of each prompt."""
        return [{name: getattr(self, name) for name in ("name", "value", "low", "high", "n", "better", "method")}]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Record):
    """All scores of one model on one split.

    Attributes:
        point: The model: base, tuned, or a merge between them.
        method: The merge method.
        split: λ is chosen on `validation` and reported on `test`.
        scores: By name.
    """

    point: MergePoint
    method: str
    split: Half
    scores: Mapping[str, Score]

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per score."""
        model = {"model": self.point.label, "lam": self.point.lam, "merge_method": self.method, "split": self.split}
        return [model | row for score in self.scores.values() for row in score.to_rows()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence(Record):
    """How far a model has moved from the base: KL(base ‖ model) in nats per token, on the base's own answers.

    Attributes:
        point: The model.
        first: At the first tokens of each answer.
        whole: Over the whole answers.
    """

    point: MergePoint
    first: Score
    whole: Score


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting(Record):
    """How far the tuned model and its merges have moved from the base on ordinary requests.

    Attributes:
        points: Every model that was measured.
        first_tokens: How many tokens `first` is of.
        tokens: The number of tokens in all answers.
        sentence: What tuning forgot, and how much of it the merge brought back.
    """

    points: Sequence[Divergence]
    first_tokens: int
    tokens: int
    sentence: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogitComparison(Record):
    """The logits of one model beside those that it should have, on the same tokens.

    Attributes:
        model: The model that was checked, in words.
        reference: What it should compute.
        difference: The largest absolute difference of two logits.
        allowed: The largest that rounding explains.
        same_top: The share of positions at which both have the same most likely token.
        passed: Whether `difference` is within `allowed`.
    """

    model: str
    reference: str
    difference: float
    allowed: float
    same_top: float
    passed: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedLora(Record):
    """A LoRA adapter that was extracted from two whole models.

    Attributes:
        folder: Its folder.
        rank: Its rank.
        errors: For every tensor that it changes, ‖δ − B·A‖/‖δ‖ of its change δ, with the factors as they are written.
        left_out: For every changed tensor that LoRA cannot hold, its share of ‖δ‖² of the whole model.
    """

    folder: Path
    rank: int
    errors: Mapping[str, float]
    left_out: Mapping[str, float]

    @property
    def sentence(self) -> str:
        """The result in a sentence or two."""
        worst = max(self.errors, key=lambda name: self.errors[name])
        text = (
            f"{len(self.errors)} matrices at rank {self.rank}: the relative error of a change is "
            f"{sorted(self.errors.values())[len(self.errors) // 2]:.1%} in the median, "
            f"{self.errors[worst]:.1%} at most ({worst})."
        )
        if self.left_out:
            share = sum(self.left_out.values())
            text += f" {len(self.left_out)} changed tensors were left out, with {share:.1%} of the squared change."
        return text

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per tensor."""
        rows: list[dict[str, Any]] = [{"tensor": name, "error": error} for name, error in self.errors.items()]
        return rows + [{"tensor": name, "left_out": share} for name, share in self.left_out.items()]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MergeCheck(Record):
    """Whether a merged model computes what it should.

    Attributes:
        passed: Whether nothing differs by more than rounding.
        logits: The models whose logits were compared.
        tensors: How many tensors of the merged model were compared with a reference; 0 if none were.
        reference: How the reference was computed.
        faults: What is wrong, a sentence each.
        notes: What was not checked, and why.
    """

    passed: bool
    logits: Sequence[LogitComparison] = ()
    tensors: int = 0
    reference: str = ""
    faults: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """The result in a sentence or two."""
        if not self.passed:
            return f"The merged model does not compute what it should: {'; '.join(self.faults)}."
        parts = []
        if self.tensors:
            parts.append(f"{self.tensors} tensors equal {self.reference} but for rounding")
        if self.logits:
            pairs = ", ".join(f"{each.model} ({each.reference})" for each in self.logits)
            worst = max(self.logits, key=lambda each: each.difference / each.allowed)
            top = min(each.same_top for each in self.logits)
            parts.append(
                f"the logits of {pairs} are as they should be: they differ by at most {worst.difference:.1e}, where "
                f"{worst.allowed:.1e} is allowed, with the same most likely token at {top:.1%} of positions"
            )
        unchecked = f" Not checked: {'; '.join(self.notes)}." if self.notes else ""
        checked = f"was checked: {'; '.join(parts)}" if parts else "was not checked"
        return f"The merged model {checked}.{unchecked}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Record):
    """The chosen λ, and why.

    Attributes:
        point: The chosen λ; if nothing is within the bound, the nearest to it.
        within: Whether it keeps the bound; true where the policy has none.
        bound: The largest attack success rate (ASR) allowed; with several bounds, the first. For a policy without a
            bound, what it would have been.
        metric: The task score that decided, or `lam` where there is no task.
        reason: One sentence.
        policy: How it was chosen: `bound`, `paper` or `knee`.
        confidence: How sure the bound is; `None` where estimates were compared with it.
        upper: The one-sided upper confidence limit of each model's ASR, by `MergePoint.key`; empty if estimates were
            compared. If λ by module was chosen, those of the single λ.
        keeps: Whether each model is shown to keep the bound on ASR, by `MergePoint.key`. Models that were not tested
            are missing, and all are if the policy has no bound.
        prompts: How many prompts these rest on, at the least.
        sensitivity: How large an error of the judge would overturn the verdict, and what responses that could not be
            judged change, a sentence each; empty where the policy has no bound.
        bounds: The largest rate allowed, by score, for a policy with bounds: `asr`, `asr+prefill:8`, `over_refusal`.
    """

    point: MergePoint
    within: bool
    bound: float
    metric: str
    reason: str
    policy: str = "bound"
    confidence: float | None = None
    upper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    keeps: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    prompts: int = 0
    sensitivity: str = ""
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)


Decision = Literal["ship", "do_not_ship", "not_enough_evidence"]
"""What a run says of its merged model."""
Outcome = Literal["passed", "failed", "unknown"]
"""How a check of a verdict ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gain(Record):
    """The share of the tuned model's gain over the base that the merged model keeps: (merged − base) / (tuned − base).

    1 keeps all of it, above 1 is better than the tuned model, below 0 worse than the base.

    Attributes:
        value: The share; `None` where it is not shown, since the gain itself cannot be distinguished from zero.
        low: Lower end of its 95 % interval, from a paired bootstrap over prompts.
        high: Upper end.
        n: How many prompts it rests on.
        why: Why it is not shown, in a few words.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerdictCheck(Record):
    """One of the conditions of a verdict.

    Attributes:
        name: `base`, `asr`, `over_refusal`, `judge`, `validation`, `task` or `task_margin`.
        outcome: `passed`, `failed`, or `unknown` where the prompts do not tell.
        sentence: The result for people.
        value: What was measured: of a rate bounded above the base's, the difference.
        upper: Its one-sided upper confidence limit.
        allowed: The largest value allowed.
        n: How many prompts it rests on.
    """

    name: str
    outcome: Outcome
    sentence: str
    value: float | None = None
    upper: float | None = None
    allowed: float | None = None
    n: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunVerdict(Record):
    """Whether a run's merged model can be shipped, decided on the test half (docs/choosing.md).

    Attributes:
        format: The version of this record.
        decision: `do_not_ship` if a check failed, `not_enough_evidence` if one is unknown, else `ship`.
        sentence: Why, in one plain sentence with the numbers.
        confidence: The confidence of the upper limits.
        judge: The safety judge that decided.
        checks: What was checked, in order.
        caveats: What the decision does not cover, a sentence each.
    """

    format: Literal[1] = 1
    decision: Decision
    sentence: str
    confidence: float
    judge: str
    checks: Sequence[VerdictCheck] = ()
    caveats: Sequence[str] = ()

    @property
    def words(self) -> str:
        """The decision in words."""
        return {"ship": "Ship", "do_not_ship": "Do not ship"}.get(self.decision, "Not enough evidence")

    @property
    def passed(self) -> bool:
        """Whether the decision is to ship."""
        return self.decision == "ship"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Record):
    """A merge with λ by module that was tried on validation: its `trial`.

    Attributes:
        upper: The ASR's upper confidence limit, or its estimate where no confidence is asked for, to be held against
            the bound; `None` where too few answers could be judged.
        within: Whether it keeps every bound.
        beats: Whether it betters the single λ: on both axes, or, if it was found by gradient, in the task score. It is
            taken only where it is within, too.
    """

    trial: Trial
    upper: float | None
    within: bool
    beats: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchLosses(Record):
    """What a search by gradient looks at, in nats per token.

    Attributes:
        task: The mean of −log p of the task's references.
        harmful: KL(base ‖ merged) at the first tokens of the base's own answers to harmful requests.
        ordinary: The same for ordinary requests; `None` if none were given.
    """

    task: float
    harmful: float
    ordinary: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GradientSearch(Record):
    """How a search for λ by gradient ended.

    Attributes:
        point: What it found; the single λ if nothing was better.
        groups: The groups of weights with a λ of their own.
        lams: λ of each of them.
        single: The losses at the single λ. Those of requests are the limits of the search.
        found: The losses at what it found.
        evaluations: How often the losses and their derivatives were computed.
        sentence: What it found, for people.
    """

    point: MergePoint
    groups: Sequence[str]
    lams: Sequence[float]
    single: SearchLosses | None
    found: SearchLosses | None
    evaluations: int
    sentence: str

    def __post_init__(self) -> None:
        if len(self.lams) != len(self.groups):
            raise ValueError("`lams` has not one λ for each of `groups`")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ByModule(Record):
    """How a search for λ by module ended.

    Attributes:
        single: The validation trial of the single λ, which it began from.
        groups: The groups of modules whose λ could be moved.
        budget: How many merges could be tried.
        confidence: At which each of them was tested; `None` where estimates were compared.
        tried: Those that were, in order.
        chosen: Which of them is taken; `None` for the single λ.
        sentence: Whether it beat the single λ, for people.
        test: The test trial of the one that is taken.
        gradient: The search by gradient, if that is what found the one that was tried.
    """

    single: Trial
    groups: Sequence[str]
    budget: int
    confidence: float | None
    tried: Sequence[Attempt]
    chosen: int | None
    sentence: str
    test: Trial | None = None
    gradient: GradientSearch | None = None

    def __post_init__(self) -> None:
        if self.chosen is not None and not 0 <= self.chosen < len(self.tried):
            raise ValueError("`chosen` is none of those that were tried")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaselineResult(Record):
    """A gentler tuning beside the merge.

    Attributes:
        name: Its kind and its number, such as `gentle-lr:3`.
        settings: What it changes in the tuning, in words.
        digest: That of its adapter's weights.
        trials: Its scores on both halves; its point is λ = 1, since it is not merged.
        within: Whether it keeps the bounds on validation, by the same test as a λ. `None` where the policy has none.
        upper: The upper confidence limit of its ASR on validation; its estimate where no confidence is asked for.
        differences: By score of the test half, by how much the merge's is above its own, on the same prompts.
    """

    name: str
    settings: str
    digest: str
    trials: Sequence[Trial]
    within: bool | None
    upper: float | None
    differences: Mapping[str, Difference]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Baselines(Record):
    """The gentler tunings that a merge was compared with.

    Attributes:
        tried: Each of them.
        best: Which of them has the best task score on validation among those that keep the bounds; `None` if none does.
        metric: The task score of the test half that is compared; empty without a task.
        sentence: Whether the merge beats it, for people.
    """

    tried: Sequence[BaselineResult]
    best: int | None
    metric: str
    sentence: str

    def __post_init__(self) -> None:
        if self.best is not None and not 0 <= self.best < len(self.tried):
            raise ValueError("`best` is none of those that were tried")


T = TypeVar("T")


def from_dict(kind: type[T], data: Any) -> T:
    """Convert plain JSON values to a record: the inverse of `Record.to_dict`.

    Raises:
        DataError: `data` is not such a record (`data.bad_record`); the message names the field.
    """
    try:
        record: T = convert(kind, data)
    except ValueError as error:
        raise DataError(f"not a {kind.__name__} record: {error}", EDITED, code="data.bad_record") from None
    return record


def dumps(record: Record) -> str:
    """Format a record as one line of JSON."""
    return jsonio.dumps(record.to_dict())


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write records, one per line; the file appears complete or not at all."""
    atomic_text(path, "".join(dumps(record) + "\n" for record in records))


def read_record(path: Path, kind: type[T]) -> T:
    """Read a record from a JSON file of its own.

    Raises:
        DataError: The file cannot be read, or is not such a record (see `read_as`).
    """
    record: T = read_as(path, kind, f"a {kind.__name__} record")
    return record


def read_jsonl(path: Path, kind: type[T]) -> list[T]:
    """Read records that `write_jsonl` wrote.

    Raises:
        DataError: The file cannot be read, or a line is not such a record; the message names it as file:line.
    """
    records: list[T] = []
    for number, line in enumerate(read_lines(path), 1):
        if line:
            try:
                records.append(convert(kind, loads(line, LINE)))
            except ValueError as error:
                where = f"{path}:{number}: not a {kind.__name__} record"
                raise DataError(f"{where}: {error}", EDITED, code="data.bad_record") from None
    return records
