"""The options that functions of `mooring` share with a recipe, as typed keywords.

Written by docs/build.py from the fields of `mooring.config` (`make docs`). Defaults and meanings: docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import torch

    from mooring.config import Judge

BuiltInMethod: TypeAlias = Literal[
    "linear",
    "task_arithmetic",
    "lines",
    "slerp",
    "model_stock",
    "karcher",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "nuslerp",
    "multislerp",
    "nearswap",
    "sce",
    "arcee_fusion",
    "chat_vector",
    "resta",
    "lox",
    "lssf",
    "safe_lora",
    "safe_merge",
    "intruders",
]
Method: TypeAlias = BuiltInMethod | str
"""A merge method; any other name is that of a plug-in."""
BuiltInEngine: TypeAlias = Literal["transformers", "vllm", "openai"]
Engine: TypeAlias = BuiltInEngine | str
"""An engine; any other name is that of a plug-in."""
JudgeLike: TypeAlias = "str | Mapping[str, Any] | Judge"
"""A judge by its name, or with its fields."""
Value: TypeAlias = float | tuple[float, ...]
"""A number, or a ramp from the first layer to the last."""
Lam: TypeAlias = Value | Mapping[str, Value]
"""λ: a number, a ramp, or patterns of tensors' names to either."""


class MethodOptions(TypedDict, total=False):
    """The options of a merge method besides λ (docs/methods.md), which are one value, or one per tuned model."""

    weights: Lam | Sequence[Lam] | None
    density: Lam | Sequence[Lam] | None
    gamma: Lam | Sequence[Lam] | None
    epsilon: Lam | Sequence[Lam] | None
    base_weight: Lam | None
    normalize: bool | None
    rescale: Literal["inverse", "l1", "none"] | None
    seed: int | None
    rank: Value | None
    threshold: Lam | None


class JobOptions(MethodOptions, total=False):
    """A merge: the method and its options."""

    plugins: str | Sequence[str]
    method: Method
    dtype: str | torch.dtype | None
    tokenizer: Literal["base", "larger"]
    unaligned: str | Path | None
    safety_adapter: str | Path | None


class OutputOptions(TypedDict, total=False):
    """What a merge writes, and how."""

    max_shard_size: int | str | None
    as_adapter: bool
    allow_nonfinite: bool
    qlora_base: Literal["given", "dequantized"]
    keep_quantization: bool
    threads: int | None
    on: str
    check: bool
    gguf: Literal["q8_0", "f16", "bf16"] | None


class MergeOptions(JobOptions, OutputOptions, total=False):
    """Options of `mooring.merge`."""


class TaskOptions(TypedDict, total=False):
    """How lm-evaluation-harness asks its tasks."""

    data: str | Path | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool
    fewshot_as_multiturn: bool


class SafeguardOptions(TypedDict, total=False):
    """Options of `mooring.safeguard`."""

    plugins: str | Sequence[str]
    system: str | None
    seed: int
    task: str | Path | None
    safety: str | Path | Sequence[str | Path]
    attacks: str | Sequence[str]
    over_refusal: str | Path | Sequence[str | Path] | None
    ordinary: str | Path | Sequence[str | Path] | None
    judges: JudgeLike | Sequence[JudgeLike]
    judge_thoughts: bool
    metrics: str | Sequence[str]
    limit: int | None
    too_long: Literal["refuse", "skip"]
    forgetting: str | Sequence[str] | None
    method: Method
    methods: Method | Sequence[Method]
    seeds: int | Sequence[int]
    density: float | None
    gamma: float | None
    epsilon: float | None
    rescale: Literal["inverse", "l1", "none"] | None
    rank: int | None
    threshold: float | None
    unaligned: str | None
    safety_adapter: str | None
    lambdas: Sequence[float]
    check: bool
    search: Literal["grid", "bisect", "modules", "gradient"]
    budget: int
    groups: Literal["modules", "layers", "tensors"]
    search_safety: str | Sequence[str]
    search_ordinary: str | Sequence[str] | None
    search_prompts: int
    policy: Literal["bound", "paper", "knee"]
    margin: float
    bound: float | None
    confidence: float | None
    bound_on: str | Sequence[str]
    over_refusal_margin: float | None
    task_margin: float | None
    corrected: bool
    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None
    max_tokens: int
    engine: Engine
    base_url: str | Sequence[str]
    key_env: str
    concurrency: int
    requests_per_minute: float | None
    batch_size: int | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: str
    tensor_parallel: int
    max_model_len: int | None
    gpu_memory: float
    enforce_eager: bool
    thinking: Literal["on", "off", "minimal", "low", "medium", "high", "xhigh"] | None
    thinking_tokens: int
    served_model: str | None
    on: str
    gpus: Literal["all"] | int
    gpus_per_engine: int | None
    storage: str | None


class TuneOptions(TypedDict, total=False):
    """Options of `mooring.tune`."""

    system: str | None
    seed: int
    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | Sequence[str]
    learning_rate: float
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    warmup_ratio: float
    per_device_train_batch_size: int
    batch_size: int | None
    num_train_epochs: float
    max_steps: int | None
    max_length: int
    max_response_length: int | None
    val_set_size: float
    save_steps: int
    checkpoint_step: int | None
    nproc: int
    fsdp: bool
    early_stop: float | None
    ema: float | None
    kl: float
    kl_data: str | Sequence[str]
    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None


class GenerateOptions(TypedDict, total=False):
    """Options of `mooring.generate`."""

    plugins: str | Sequence[str]
    system: str | None
    seed: int
    attacks: str | Sequence[str]
    engine: Engine
    base_url: str | Sequence[str]
    key_env: str
    concurrency: int
    requests_per_minute: float | None
    batch_size: int | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: str
    tensor_parallel: int
    max_model_len: int | None
    gpu_memory: float
    enforce_eager: bool
    thinking: Literal["on", "off", "minimal", "low", "medium", "high", "xhigh"] | None
    thinking_tokens: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    n: int
    repetition_penalty: float
    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None


class CompareOptions(TypedDict, total=False):
    """Options of `mooring.compare`."""

    plugins: str | Sequence[str]
    system: str | None
    seed: int
    method: Method
    density: float | None
    gamma: float | None
    epsilon: float | None
    rescale: Literal["inverse", "l1", "none"] | None
    rank: int | None
    threshold: float | None
    unaligned: str | None
    safety_adapter: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    engine: Engine
    base_url: str | Sequence[str]
    key_env: str
    concurrency: int
    requests_per_minute: float | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: str
    tensor_parallel: int
    max_model_len: int | None
    gpu_memory: float
    enforce_eager: bool
    thinking: Literal["on", "off", "minimal", "low", "medium", "high", "xhigh"] | None
    thinking_tokens: int
    served_model: str | None


class ScoreOptions(TypedDict, total=False):
    """Options of `mooring.score`."""

    plugins: str | Sequence[str]
    seed: int
    attacks: str | Sequence[str]
    judges: JudgeLike | Sequence[JudgeLike]
    judge_thoughts: bool
    metrics: str | Sequence[str]
    bertscore_model: str
    bertscore_layer: int | None
    unsafe_exec: bool
    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None
    on: str
    gpus: Literal["all"] | int
    gpus_per_engine: int | None
    storage: str | None


class RejudgeOptions(TypedDict, total=False):
    """Options of `mooring.rejudge`."""

    plugins: str | Sequence[str]
    judges: JudgeLike | Sequence[JudgeLike]
    judge_thoughts: bool


class VerifyServedOptions(TypedDict, total=False):
    """Options of `mooring.verify_served`."""

    key_env: str
    concurrency: int
    requests_per_minute: float | None
    margin: float
    bound: float | None
    confidence: float | None


class PreferOptions(TypedDict, total=False):
    """Options of `mooring.prefer`."""

    seed: int
    engine: Engine
    base_url: str | Sequence[str]
    key_env: str
    concurrency: int
    requests_per_minute: float | None
    batch_size: int | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: str
    tensor_parallel: int
    max_model_len: int | None
    gpu_memory: float | None
    enforce_eager: bool
    thinking: Literal["on", "off", "minimal", "low", "medium", "high", "xhigh"] | None
    thinking_tokens: int
    price_in: float
    price_out: float
    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None


class PreviewDataOptions(TypedDict, total=False):
    """Options of `mooring.preview_data`."""

    prompt_field: str | None
    completion_field: str | None
    messages_field: str | None


class LmEvalOptions(TaskOptions, total=False):
    """Options of `mooring.lm_eval`."""

    plugins: str | Sequence[str]
    system: str | None
    seed: int
    method: Method
    density: float | None
    gamma: float | None
    epsilon: float | None
    rescale: Literal["inverse", "l1", "none"] | None
    rank: int | None
    threshold: float | None
    unaligned: str | None
    safety_adapter: str | None
    batch_size: int | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    device: str


class SelectOptions(TypedDict, total=False):
    """Options of `mooring.select`."""

    policy: Literal["bound", "paper", "knee"]
    margin: float
    bound: float | None
    confidence: float | None
    bound_on: str | Sequence[str]
    over_refusal_margin: float | None
    task_margin: float | None
    corrected: bool
