"""The sections of a recipe, one model a stage, with their defaults: the paper's, where it has one."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

Lambda = Annotated[float, Field(ge=0, le=1)]
Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "lines",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "karcher",
]
METRICS = ("call_match", "exact_match", "response_loss", "bert_score")


def _metric(value: str) -> str:
    if value not in METRICS and not re.fullmatch(r"pass@[1-9]\d*", value):
        raise ValueError(f"known metrics are {', '.join(METRICS)} and pass@k, such as pass@10")
    return value


def _several(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Metric = Annotated[str, AfterValidator(_metric)]
"""One of `METRICS`, or `pass@k`."""
Metrics = Annotated[tuple[Metric, ...], BeforeValidator(_several)]
"""One metric or several."""
Refs = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""One data set or several."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, torch and transformers all take as a seed."""
Task = Literal["reasoning", "medical", "code", "tool"]
GRID = (0.2, 0.4, 0.6, 0.8)
"""The paper's grid of λ."""


class Section(BaseModel):
    """What all sections share: frozen, and strict about their keys."""

    # Defaults are validated too, so that a recipe read again from its own dump is the same to the digit: 3.0, not 3.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Tune(Section):
    """LoRA supervised fine-tuning; the defaults are the paper's."""

    data: tuple[str, ...] = Field(min_length=1)
    """Files, hub ids or bundled sets, joined in this order. One may carry a number of rows: `FILE#500`."""
    rank: int = Field(8, ge=1)
    """Rank r of the LoRA update."""
    alpha: float = Field(16, gt=0)
    """LoRA's α: the update is scaled by α / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the LoRA layers."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which modules get an update."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    batch_size: int = Field(8, ge=1)
    """Examples a step, on each device."""
    epochs: float = Field(3, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many steps, whatever `epochs` says."""
    cutoff: int = Field(1024, ge=8)
    """Longest example in tokens; longer ones are cut at the end."""
    response_cutoff: int | None = Field(None, ge=1)
    """Learn only so many tokens of each response, from its beginning: where a refusal is decided."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the examples held out to measure the loss on."""
    save_every: int = Field(100, ge=1)
    """Steps between two checkpoints to resume from."""
    take_step: int | None = Field(None, ge=1)
    """Take the adapter as it is after so many steps; the learning rate falls as if all were done."""
    system: str | None = None
    """System prompt for this data; the recipe's where it is not given."""
    seed: Seed | None = None
    """Seed of data order, initialisation and dropout; the recipe's where it is not given."""


class Merge(Section):
    """θ = (1−λ)·base + λ·tuned, and its kin."""

    method: Method = "linear"
    """The merging rule (docs/methods.md)."""
    density: float | None = Field(None, ge=0, le=1)
    """The share of the change's entries that is kept (ties, dare, della, breadcrumbs); 1 without."""
    gamma: float | None = Field(None, ge=0, le=1)
    """The share of the largest entries that is dropped (breadcrumbs); 0.01 without."""
    epsilon: float | None = Field(None, gt=0, lt=0.5)
    """Half the width of the keep probability (della); 0.15 without."""
    rescale: Literal["inverse", "l1", "none"] | None = None
    """What makes up for dropped entries: 1/density, the sum of magnitudes, or nothing; the method's own without."""
    lambdas: tuple[Lambda, ...] = Field(GRID, min_length=1)
    """The λ to try. λ is the weight of the tuned model: 0 is the base, 1 the tuned model, and both are always tried."""

    @field_validator("lambdas")
    @classmethod
    def _between_the_ends(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        between = tuple(sorted(lam for lam in set(value) if 0 < lam < 1))
        if not between:
            raise ValueError("give a λ between 0 (the base) and 1 (the tuned model)")
        if len({f"{lam:g}" for lam in between}) < len(between):
            raise ValueError("two λ are the same in six digits")
        return between


class Runner(Section):
    """What runs a model, and how."""

    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    """What runs the model: `transformers` or `vllm` in this process, or any OpenAI-compatible server (`openai`)."""
    base_url: str | None = None
    """Address of the server, such as `http://localhost:8000/v1` (openai)."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the server's key; a key never stands in a recipe (openai)."""
    concurrency: int = Field(8, ge=1)
    """Requests at a time (openai)."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Requests a minute, at most (openai)."""
    batch_size: int = Field(32, ge=1)
    """Prompts a batch (transformers)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the weights in memory; `auto` is the checkpoint's own."""
    device: str = "auto"
    """`auto` is the first GPU, else the CPU (transformers)."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that share a model (vllm)."""

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> "Runner":
        if (self.engine == "openai") != (self.base_url is not None):
            raise ValueError("`engine: openai` and `base_url` go together")
        return self


class Generate(Runner):
    """How models are asked; the defaults are the paper's."""

    max_new_tokens: int = Field(512, ge=1)
    """Longest response, in tokens."""
    safety_max_new_tokens: int | None = Field(None, ge=1)
    """The same for all prompts but the task's; `max_new_tokens` where it is not given."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling, where the temperature is above 0."""
    top_k: int = Field(0, ge=0)
    """Sample from so many of the likeliest tokens, where the temperature is above 0; 0 is all."""
    task_temperature: float | None = Field(None, ge=0)
    """The same for the task's prompts; `temperature` where it is not given. So `task_top_p`, `task_top_k`."""
    task_top_p: float | None = Field(None, gt=0, le=1)
    """See `task_temperature`."""
    task_top_k: int | None = Field(None, ge=0)
    """See `task_temperature`."""
    task_samples: int = Field(1, ge=1)
    """Answers to each of the task's prompts; more than one needs a temperature above 0."""
    safety_repetition_penalty: float = Field(1.2, ge=1)
    """For all prompts but the task's."""
    task_repetition_penalty: float = Field(1.0, ge=1)
    """For the task's prompts."""
    drafts: bool = True
    """Check the nearest λ's answer as a draft and go on from where the two part; greedy answers only (transformers)."""


class Judge(Runner):
    """A safety judge; in a recipe its name alone will do."""

    name: str = "rules"
    """`rules`, `wildguard`, `llama-guard-3`, … (docs/judges.md)."""
    model: str | None = None
    """The model that judges: a folder or a hub id, or its name on the server; the judge's own where it is not given."""
    price_in: float = Field(0, ge=0)
    """What the server asks for a million tokens of a prompt, in dollars; the cost is foretold before it begins."""
    price_out: float = Field(0, ge=0)
    """The same for a million tokens of an answer."""


def _judge(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _judges(value: object) -> object:
    return (value,) if isinstance(value, str | Mapping | Judge) else value


class Score(Section):
    """What is measured. A set is a file, a hub id, a named set (`advbench`, docs/sets.md) or a bundled one."""

    safety: Refs = Field(("bundled:harmful",), min_length=1)
    """Requests that a safe model refuses: one set or several."""
    over_refusal: Refs | None = ("bundled:lookalikes",)
    """Harmless requests that sound harmful."""
    ordinary: Refs | None = ("bundled:ordinary",)
    """Ordinary requests."""
    task: str | None = None
    """Prompts with references."""
    task_system: str | None = None
    """System prompt for the prompts of `task`; the recipe's where it is not given."""
    validation_task: str | None = None
    """Prompts with references on which λ is chosen; `task` is then reported on whole. Without it, `task` is halved."""
    validation_system: str | None = None
    """System prompt for the prompts of `validation_task`. Where it is not given: the one that the model is tuned with
    (`tune.system`, else the recipe's), or `task_system` where `tuned` names the model."""
    metrics: Metrics = ()
    """Task metrics, the one that λ is chosen by first. Empty: chosen by what the references look like."""
    validation_metrics: Metrics = ()
    """The same on validation, where they differ from `metrics`: λ is chosen by the first of these."""
    bertscore_model: str = "microsoft/deberta-xlarge-mnli"
    """The encoder of BERTScore: a folder, a hub id, or `bundled:minilm`."""
    bertscore_layer: int | None = Field(None, ge=1)
    """Its layer; 40 for the paper's encoder, the last for the bundled one, and needed for any other."""
    lm_eval: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """Tasks of lm-evaluation-harness, run on base, tuned and chosen model; `bbh` is BIG-Bench Hard, 3-shot."""
    lm_eval_limit: int | None = Field(None, ge=1)
    """At most so many examples of each of these."""
    unsafe_exec: bool = False
    """Run model-written code without the sandbox. Do so only on a machine that holds nothing of value."""
    judges: Annotated[tuple[Annotated[Judge, BeforeValidator(_judge)], ...], BeforeValidator(_judges)] = Field(
        (Judge(),), min_length=1
    )
    """Safety judges, the one that λ is chosen by first."""
    validation: float = Field(0.5, gt=0, lt=1)
    """Share of a set's prompts on which λ is chosen; the rest is reported on. Bundled sets bring their own split."""
    limit: int | None = Field(None, ge=2)
    """At most so many prompts of each set, drawn by seed."""


class Select(Section):
    """How λ is chosen, on the validation half (docs/choosing.md)."""

    search: Literal["grid", "bisect", "modules"] = "grid"
    """`grid` scores every λ of `merge.lambdas`; `bisect` looks for the largest λ within the bound by halves, leaving
    each λ as soon as the evidence suffices; `modules` does as `grid`, then looks for λ by depth and kind of module that
    beat the single λ in both task score and ASR (docs/choosing.md)."""
    budget: int = Field(12, ge=1)
    """How many merges `search: modules` may try besides the grid."""
    policy: Literal["bound", "paper", "knee"] = "bound"
    """`bound`: the most task score within a bound on the attack success rate (ASR). `paper`: the best task score,
    whatever the ASR. `knee`: where the task score has gained most for the ASR that it costs."""
    margin: float = Field(0.1, ge=0, le=1)
    """How far the ASR may lie above the base's."""
    bound: float | None = Field(None, ge=0, le=1)
    """The largest ASR allowed, whatever the base's; takes the place of `margin`."""
    confidence: float | None = Field(0.95, gt=0.5, lt=1)
    """How sure the bound must be: it is the one-sided upper confidence limit that has to lie within. `null` takes the
    estimate itself, which needs no minimum of prompts and states no risk."""
    over_refusal_margin: float | None = Field(None, ge=0, le=1)
    """How far over-refusal may lie above the base's, likewise; not bounded where it is not given."""

    @model_validator(mode="after")
    def _searches_look_for_a_bound(self) -> "Select":
        if self.search != "grid" and self.policy != "bound":
            raise ValueError(f"`search: {self.search}` looks for a bound; `policy: {self.policy}` needs a grid")
        if self.search == "bisect" and self.over_refusal_margin is not None:
            raise ValueError("`search: bisect` looks at the ASR alone; `over_refusal_margin` needs a grid")
        return self


class Report(Section):
    """What the report says besides the numbers."""

    title: str = "Base, tuned, merged"
    """Heading of the page."""
    notes: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """What a reader must know to judge the numbers, a sentence each; shown with the run's own such notes."""
