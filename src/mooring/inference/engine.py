"""What an engine is: it answers prompts and says how likely references are, batch by batch."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mooring.config import Runner
from mooring.errors import DataError
from mooring.records import Completion, Likelihood, Prompt
from mooring.sampling import SamplingParams


class Engine(Protocol):
    """A model that can be asked.

    The batches that an engine makes are a function of the whole list of prompts, so that a run which is stopped and
    resumed (the same list, and the ids that are `done`) computes what an uninterrupted one does, to the bit.
    """

    @property
    def about(self) -> Mapping[str, Any]:
        """Engine, versions, and what else its numbers depend on, for the record; plain JSON values."""
        ...

    def complete(
        self, prompts: Sequence[Prompt], settings: SamplingParams, *, done: Collection[str] = ()
    ) -> Iterator[list[Completion]]:
        """Answer prompts; yield a batch as soon as it is made, in the engine's own order.

        Args:
            prompts: The whole list, ids unique.
            settings: How responses are drawn.
            done: Keys (`records.sample_key`) that need no answer. A batch of which any is missing is computed whole.

        Raises:
            DataError: A prompt and `max_tokens` do not fit the model's context; before anything is generated.
        """
        ...

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """How surprised the model is by each prompt's reference, the end-of-turn token included.

        Raises:
            DataError: A prompt has no reference, or does not fit the context; before anything is computed.
        """
        ...


@runtime_checkable
class Drafting(Engine, Protocol):
    """An engine that may be helped by another model's answers."""

    def complete_drafted(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingParams,
        drafts: Mapping[str, str],
        *,
        done: Collection[str] = (),
    ) -> Iterator[list[Completion]]:
        """As `complete`, and the same answers up to rounding; `made_by` says how many tokens a draft had right.

        Args:
            prompts: As `complete`.
            settings: Likewise.
            drafts: Answers of another model by their keys; not used where sampling draws the tokens.
            done: As `complete`.
        """
        ...


def share_saved(completions: Iterable[Completion]) -> float | None:
    """The share of all tokens that drafts had right; None where there were no drafts."""
    completions = list(completions)
    tokens = sum(c.tokens for c in completions)
    if not tokens or not any("accepted" in c.made_by for c in completions):
        return None
    return sum(int(c.made_by.get("accepted", 0)) for c in completions) / tokens


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse an empty list, and ids that occur twice.

    Raises:
        DataError: One of these.
    """
    if not prompts:
        raise DataError("there are no prompts to ask", "is the data set empty?")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DataError(f"{prompt.origin or 'prompts'}: the id {prompt.id!r} occurs twice", "give each its own")
        seen.add(prompt.id)


def plan(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split prompts into batches of similar length: a function of the lengths alone.

    Args:
        lengths: Tokens of each prompt.
        batch_size: Most prompts in a batch.

    Returns:
        Indices into `lengths`, a list a batch, longest first: what needs most memory fails first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pending(batches: Sequence[list[int]], keys: Sequence[str], done: Collection[str]) -> list[list[int]]:
    """The batches of which something is still missing; `keys` are those of what the batches number."""
    known = frozenset(done)
    return [batch for batch in batches if any(keys[i] not in known for i in batch)]


def each_sample(prompts: Sequence[Prompt], settings: SamplingParams) -> list[tuple[int, int]]:
    """Every answer that is asked for, as (index of the prompt, sample), the samples of a prompt together.

    Raises:
        DataError: Several samples of a greedy model, which would all be the same.
    """
    if settings.n > 1 and settings.temperature == 0:
        raise DataError(f"{settings.n} samples at temperature 0 are all the same", "set a temperature, or one sample")
    return [(index, sample) for index in range(len(prompts)) for sample in range(settings.n)]


def load_engine(model: Path | str | None, section: Runner, system: str | None) -> Engine:
    """Open a model with the engine that the recipe names.

    Args:
        model: Folder of a full checkpoint, or of a LoRA adapter whose base is on this machine; for `openai` the
            model's name on the server, or `None` for the only one there.
        section: The recipe's `generate` section, or a judge's.
        system: System prompt for prompts that bring none.

    Raises:
        ModelError: The folder is not a model that can be loaded, or the server has no such model.
        MissingExtraError: The engine's package is not installed.
    """
    if section.engine == "openai":
        from mooring.inference.openai import OpenAIEngine

        return OpenAIEngine(
            str(section.base_url),
            None if model is None else str(model),
            system=system,
            key_env=section.key_env,
            concurrency=section.concurrency,
            requests_per_minute=section.requests_per_minute,
        )
    assert model is not None
    if section.engine == "vllm":
        from mooring.inference.vllm import VLLMEngine

        return VLLMEngine.load(Path(model), system=system, dtype=section.dtype, tensor_parallel=section.tensor_parallel)
    from mooring.inference.transformers import TransformersEngine

    return TransformersEngine.load(
        Path(model), system=system, batch_size=section.batch_size, dtype=section.dtype, device=section.device
    )
