"""The engine on `transformers`: a local folder, batches by length, padded on the left."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import ModelError
from mooring.inference.decode import decode, pad_left
from mooring.inference.drafts import decode_drafted, supported
from mooring.inference.encode import decode_completion, encode_examples, encode_prompts, stop_tokens
from mooring.inference.engine import plan_batches, sample_indices, unfinished
from mooring.quiet import quiet
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
LOGITS = 2**26
"""Most logits (rows × positions × vocabulary) that the likelihood of one batch may take."""
TOGETHER = 4
"""Batches whose drafts are checked before the rows that part from them go on together."""


class TransformersEngine:
    """A causal language model in this process.

    Args:
        model: A causal model of transformers (or peft's wrapping of one).
        tokenizer: Its tokenizer, with a chat template.
        system: System prompt for prompts that bring none.
        batch_size: Prompts a batch.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, system: str | None = DEFAULT_SYSTEM, batch_size: int = 32
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.system = system
        self.batch_size = batch_size
        self.stops = stop_tokens(model.generation_config, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad = min(self.stops, default=0) if pad is None else pad

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int = 32,
        dtype: Dtype = "auto",
        device: str = "auto",
    ) -> "TransformersEngine":
        """Open a full checkpoint, or a LoRA adapter on the base that it names. No code of the folder is run.

        Raises:
            ModelError: The folder is not a model, or one that transformers cannot load whole.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        with quiet("transformers"):
            model, tokenizer = load_model(Path(folder), dtype)
        return cls(model.to(device), tokenizer, system=system, batch_size=batch_size)

    @property
    def about(self) -> Mapping[str, Any]:
        """As `Engine.about`."""
        return {
            "engine": "transformers",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "batch_size": self.batch_size,
            "system": self.system,
        }

    def complete(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, done: Collection[str] = ()
    ) -> Iterator[list[Completion]]:
        """As `Engine.complete`."""
        rows = self._rows(prompts, params)
        asked = sample_indices(prompts, params)
        keys = [sample_key(prompts[i].id, sample) for i, sample in asked]
        for batch in unfinished(plan_batches([len(rows[i]) for i, _ in asked], self.batch_size), keys, done):
            which = [asked[number] for number in batch]
            made = decode(
                self.model, [rows[i] for i, _ in which], [keys[n] for n in batch], params, self.stops, self.pad
            )
            yield [
                decode_completion(self.tokenizer, tokens, self.stops, prompts[i].id, sample)
                for (i, sample), tokens in zip(which, made, strict=True)
            ]

    def complete_drafted(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        drafts: Mapping[str, str],
        *,
        done: Collection[str] = (),
    ) -> Iterator[list[Completion]]:
        """As `Drafting.complete_drafted`: several batches are yielded together, as they are worked on together.

        Drafts help where every layer of the model keeps all positions; with sliding windows it is asked without.
        """
        if params.temperature or not supported(self.model.config):
            yield from self.complete(prompts, params, done=done)
            return
        rows = self._rows(prompts, params)
        for batch in unfinished(
            plan_batches([len(row) for row in rows], TOGETHER * self.batch_size), [p.id for p in prompts], done
        ):
            texts = [drafts.get(prompts[i].id, "") for i in batch]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            asked = [rows[i] for i in batch]
            made = decode_drafted(self.model, asked, ids, params, self.stops, self.pad, self.batch_size)
            yield [
                dataclasses.replace(
                    decode_completion(self.tokenizer, answer.tokens, self.stops, prompts[i].id),
                    made_by={"accepted": answer.accepted},
                )
                for i, answer in zip(batch, made, strict=True)
            ]

    def _rows(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        """The prompts' tokens; they fit the context with the answers."""
        return encode_prompts(self.tokenizer, prompts, self.system, params.max_tokens, self._context)

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """As `Engine.likelihood`."""
        encoded = encode_examples(self.tokenizer, examples, self.system, self._context)
        for batch in unfinished(self._loss_batches(encoded), [example.id for example in examples], done):
            sums = response_nll(self.model, [encoded[i] for i in batch], self.pad)
            yield [
                Likelihood(prompt_id=examples[i].id, nll=nll, tokens=len(encoded[i][0]) - encoded[i][1])
                for i, nll in zip(batch, sums, strict=True)
            ]

    def _loss_batches(self, encoded: Sequence[tuple[list[int], int]]) -> list[list[int]]:
        # Logits are what takes the memory: they are made for the longest response of a batch, in every row.
        longest = max(len(row) - start for row, start in encoded)
        fit = max(1, LOGITS // (self.model.config.get_text_config().vocab_size * (longest + 1)))
        return plan_batches([len(row) for row, _ in encoded], min(self.batch_size, fit))

    @property
    def _context(self) -> int | None:
        """Most tokens of a prompt and its response together, where the configuration names a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


@torch.inference_mode()
def response_nll(model: Any, encoded: Sequence[tuple[list[int], int]], pad: int) -> list[float]:
    """−Σ log p of the tokens after the prompt, in nats, for each (tokens, tokens of the prompt).

    Padded on the left, so that all responses end at the last position and logits are made for their span alone.
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


def load_model(folder: Path, dtype: Dtype) -> tuple[Any, Any]:
    """A model and its tokenizer from a folder; for an adapter, those of its base with the adapter on it.

    Raises:
        ModelError: As `TransformersEngine.load`.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "name a folder with a model in it")
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: has no config.json", "is it a model's folder?")
    try:
        if adapter.is_file():
            return _load_adapter(folder, json.loads(adapter.read_text(encoding="utf-8")), dtype)
        return _load_full(folder, dtype), _load_tokenizer(folder)
    except ModelError:
        raise
    except Exception as error:  # whatever a loader meets in a broken folder, in one line
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{folder}: cannot be loaded ({reason})", "is the folder whole?") from error


def _load_full(folder: Path, dtype: Dtype) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}", "is the folder whole?")
    return model


def _load_tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _load_adapter(folder: Path, config: Mapping[str, Any], dtype: Dtype) -> tuple[Any, Any]:
    from peft import PeftModel

    base = Path(str(config.get("base_model_name_or_path")))
    if not base.is_dir():
        raise ModelError(f"{folder}: its base model {base} is not a folder here", "put the base model there")
    model = PeftModel.from_pretrained(_load_full(base, dtype), folder, is_trainable=False)
    own = (folder / "tokenizer_config.json").is_file()
    return model, _load_tokenizer(folder if own else base)
