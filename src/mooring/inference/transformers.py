"""The engine on `transformers`, in this process: batches of similar length, padded on the left."""

import dataclasses
import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import ModelError
from mooring.files import atomic_text
from mooring.inference.decode import MAX_LOGITS, decode, pad_left
from mooring.inference.devices import choose_device, load_options, memory_dtype, put, weights_size
from mooring.inference.drafts import decode_drafted, supported
from mooring.inference.encode import opens_block, stop_tokens
from mooring.inference.engine import SmallerBatchesError, plan_batches, unfinished
from mooring.inference.folder import Dtype, open_folder
from mooring.inference.token_engine import Encoded, TokenEngine
from mooring.jsonio import read_as
from mooring.models import read_config
from mooring.models.classes import attach_adapter, context_length, load_model, text_fields, vocab_size
from mooring.quiet import quiet
from mooring.records import Completion, Likelihood, Prompt
from mooring.sampling import SamplingParams
from mooring.thinking import Thinking, joined, marks_of, split_thoughts

T = TypeVar("T")

DEFAULT_BATCH_SIZE = 32
"""Prompts per batch on the CPU, which has no more use for larger batches."""
LARGEST_BATCH_SIZE = 256
"""Prompts per batch to begin with on a GPU."""

DRAFT_BATCHES = 4
"""Number of batches whose drafts are checked before the rows that deviate from them continue together."""


class TransformersEngine(TokenEngine):
    """A causal language model in this process.

    Args:
        model: A causal model of transformers, or PEFT's wrapper of one.
        tokenizer: Its tokenizer, with a chat template.
        system: System prompt for prompts that have none.
        batch_size: Maximum number of prompts per batch. None is 32 on the CPU. On a GPU it is 256, halved whenever
            memory runs out.
        thinking: Whether the chat template asks the model to think.

    Attributes:
        adapts: Whether the batch size is halved when memory runs out.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        stops = stop_tokens(model.generation_config, tokenizer)
        size, self.adapts = first_batch_size(model.device.type) if batch_size is None else (batch_size, False)
        super().__init__(tokenizer, stops, system=system, batch_size=size, thinking=thinking)
        self._record: Path | None = None
        self.model = model.eval()
        pad = tokenizer.pad_token_id
        self.pad = min(self.stops, default=0) if pad is None else pad

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int | None = None,
        dtype: Dtype = "auto",
        device: str = "auto",
        thinking: Thinking | None = None,
    ) -> "TransformersEngine":
        """Open a full checkpoint, or a LoRA adapter on its base. No code of the folder is run.

        Args:
            folder: Where the model is.
            system: System prompt for prompts that have none.
            batch_size: Maximum number of prompts per batch; None as in the class.
            dtype: Type of the weights in memory; `auto` as in `memory_dtype`.
            device: `auto` is a GPU if there is one, or all of them if the model does not fit on the first.
            thinking: Whether the chat template asks the model to think.

        Raises:
            ModelError: The folder does not hold a model, or one that transformers cannot load completely; or it is too
                large for the GPUs.
        """
        opened = open_folder(Path(folder))
        config = text_fields(read_config(opened.base))
        stored = config.get("dtype") or config.get("torch_dtype")
        device = choose_device(device, weights_size(opened.base, stored, dtype))
        dtype = memory_dtype(dtype, stored, device)
        with quiet("transformers"):
            model = load_model(opened.base, dtype=dtype, **load_options(device))
            if opened.adapter is not None:
                model = attach_adapter(model, opened.path)
            tokenizer = opened.load_tokenizer()
        return cls(put(model, device), tokenizer, system=system, batch_size=batch_size, thinking=thinking)

    def record_batch_size(self, path: Path) -> None:
        """Continue with the batch size recorded in a file, if there is one, and record each smaller one there.

        A batch size that was set is neither changed nor recorded.

        Raises:
            DataError: The file holds something else.
        """
        if self.adapts:
            self._record = path
            if path.exists():
                self.batch_size = min(self.batch_size, max(1, read_as(path, int, "a batch size")))

    @property
    def about(self) -> Mapping[str, Any]:
        """See `Engine.about`."""
        return {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "batch_size": self.batch_size,
            "system": self.system,
            **({"thinking": self.thinking} if self.thinking else {}),
        }

    @property
    def context(self) -> int | None:
        """See `TokenEngine.context`."""
        return context_length(self.model.config)

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """See `Engine.complete`; with drafts, several batches are computed and yielded together.

        Drafts are ignored above temperature 0, and if a layer does not keep all positions (sliding windows).
        """
        return self._halving(self._complete(prompts, params, done, drafts))

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """See `Engine.likelihood`."""
        return self._halving(super().likelihood(examples, done=done))

    def _halving(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield batches; halve their size if memory runs out."""
        try:
            yield from batches
            return
        except torch.OutOfMemoryError:
            pass  # what the error holds has to be free before the next attempt
        _free_memory()
        size, where = self.batch_size, self.model.device.type
        if size == 1:
            hint = "set a smaller `max_tokens`, another `dtype` or another `device`"
            raise ModelError(
                f"one prompt at a time does not fit the memory ({where})", hint, code="model.out_of_memory"
            )
        if not self.adapts:
            hint = f"set `batch_size: {size // 2}`, or leave it out to have it found"
            raise ModelError(f"batches of {size} do not fit the memory ({where})", hint, code="model.out_of_memory")
        self.batch_size = size // 2
        if self._record is not None:
            atomic_text(self._record, f"{self.batch_size}\n")
        raise SmallerBatchesError

    def _complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        done: Collection[str],
        drafts: Mapping[str, str] | None,
    ) -> Iterator[list[Completion]]:
        if not drafts or params.temperature or not supported(self.model.config):
            yield from super().complete(prompts, params, done=done)
            return
        rows = self._encode(prompts, params)
        batches = plan_batches([len(row) for row in rows], DRAFT_BATCHES * self.batch_size)
        for batch in unfinished(batches, [prompt.id for prompt in prompts], done):
            in_thoughts = [opens_block(self.tokenizer, rows[i]) for i in batch]
            texts = [
                self._draft(drafts.get(prompts[i].id, ""), opened) for i, opened in zip(batch, in_thoughts, strict=True)
            ]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            made = decode_drafted(
                self.model, [rows[i] for i in batch], ids, params, self.stops, self.pad, self.batch_size
            )
            completions = [
                self._decode(prompts[i], rows[i], drafted.tokens) for i, drafted in zip(batch, made, strict=True)
            ]
            yield [
                dataclasses.replace(completion, made_by={"accepted": drafted.accepted})
                for completion, drafted in zip(completions, made, strict=True)
            ]

    def _draft(self, text: str, opened: bool) -> str:
        """A draft with its thoughts as the template marks them; the mark that opens them may be the prompt's."""
        thoughts, answer, _ = split_thoughts(text)
        if thoughts is None:
            return text
        marks = marks_of(str(self.tokenizer.chat_template), list(self.tokenizer.get_added_vocab()))
        return joined(thoughts, answer, marks).removeprefix(marks.open if opened else "")

    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        return decode(self.model, rows, keys, params, self.stops, self.pad)

    def _score(self, examples: list[Encoded]) -> list[float]:
        return response_nll(self.model, examples, self.pad)

    def _score_batch_size(self, encoded: Sequence[Encoded]) -> int:
        return score_batch_size(encoded, self.batch_size, vocab_size(self.model.config))


def score_batch_size(encoded: Sequence[Encoded], batch_size: int, vocabulary: int) -> int:
    """The number of examples per batch whose logits fit the memory.

    Logits take the most memory; they are computed for the longest response of a batch, in each row.
    """
    longest = max(len(row) - start for row, start in encoded)
    return min(batch_size, max(1, MAX_LOGITS // (vocabulary * (longest + 1))))


@torch.inference_mode()
def response_nll(model: Any, encoded: Sequence[Encoded], pad: int) -> list[float]:
    """−Σ log p of the tokens after each prompt, in nats.

    Padding is on the left, so that all responses end at the last position and logits are computed for their span only.
    """
    rows = [row for row, _ in encoded]
    sizes = [len(row) - start for row, start in encoded]
    ids, mask, positions = pad_left(rows, pad, model.device)
    keep = max(sizes) + 1
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
    ).logits[:, -keep:]
    return [
        torch.nn.functional.cross_entropy(
            logits[i, keep - 1 - size : -1].float(), ids[i, ids.shape[1] - size :], reduction="none"
        )
        .double()
        .sum()
        .item()
        for i, size in enumerate(sizes)
    ]


def first_batch_size(device: str) -> tuple[int, bool]:
    """The batch size on a type of device if none is set, and whether it is halved when memory runs out."""
    return (DEFAULT_BATCH_SIZE, False) if device == "cpu" else (LARGEST_BATCH_SIZE, True)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
