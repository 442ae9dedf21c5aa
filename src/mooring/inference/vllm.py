"""The engine on vLLM: tokens in and tokens out, as in the engine on transformers."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.chat import DEFAULT_SYSTEM, prefill_tokens
from mooring.errors import ModelError
from mooring.inference.encode import (
    decode_completion,
    encode_examples,
    encode_prompts,
    response_seed,
    stop_tokens,
)
from mooring.inference.engine import plan_batches, sample_indices
from mooring.inference.folder import ModelFolder, open_folder
from mooring.inference.vllm_errors import starting
from mooring.inference.vllm_shared import RANKS, LoraOptions, SharedLLM, VLLMOptions, import_vllm
from mooring.models import Adapter, open_adapter
from mooring.models.adapter_config import beyond_plain
from mooring.models.classes import load_config
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams
from mooring.thinking import Thinking

DEFAULT_OPTIONS = VLLMOptions()


class VLLMEngine:
    """A model in vLLM. Several can share one running engine, each with an adapter of its own, from several threads.

    All requests are submitted at once, and vLLM's scheduler batches them. Of the checkpoint's generation config, only
    the stop tokens have an effect.

    Args:
        shared: The running engine.
        tokenizer: The model's tokenizer, from transformers, with a chat template.
        stops: Tokens that end a response.
        system: System prompt for prompts that have none.
        adapter: A `LoRARequest` for each request; None for the model itself.
        options: The options that the engine was started with, for `about`.
        thinking: Whether the chat template asks the model to think.
    """

    def __init__(
        self,
        shared: SharedLLM,
        tokenizer: Any,
        stops: Collection[int],
        *,
        system: str | None = DEFAULT_SYSTEM,
        adapter: Any = None,
        options: VLLMOptions = DEFAULT_OPTIONS,
        thinking: Thinking | None = None,
    ) -> None:
        self.shared = shared
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self.system, self.thinking = system, thinking
        self.adapter = adapter
        self.options = options

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        system: str | None = DEFAULT_SYSTEM,
        options: VLLMOptions = DEFAULT_OPTIONS,
        log: Path | None = None,
        thinking: Thinking | None = None,
    ) -> "VLLMEngine":
        """Open a full checkpoint, or a LoRA adapter on its base. No code of the folder is run.

        Args:
            folder: Where the model is.
            system: System prompt for prompts that have none.
            options: How vLLM runs it.
            log: File that vLLM's logs are appended to; by default a temporary one, see `engine_logs`.
            thinking: Whether the chat template asks the model to think.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelError: The folder does not hold a model, or one that vLLM cannot load.
        """
        with starting(Path(folder), log):
            import_vllm()
            opened = open_folder(Path(folder))
            lora = None if opened.adapter is None else lora_options(open_adapter(opened.path))
            tokenizer, stops = open_tokenizer(opened)
            shared = SharedLLM.start(opened.base, options, tokenizer=opened.tokenizer, lora=lora)
            adapter = None if lora is None else shared.adapter(opened.path)
        return cls(shared, tokenizer, stops, system=system, adapter=adapter, options=options, thinking=thinking)

    @property
    def about(self) -> Mapping[str, Any]:
        """See `Engine.about`."""
        import transformers
        import vllm

        return {
            "engine": "vllm",
            "vllm": vllm.__version__,
            "transformers": transformers.__version__,
            "tensor_parallel": self.options.tensor_parallel,
            "enforce_eager": self.options.enforce_eager,
            "dtype": self.shared.dtype,
            "max_model_len": self.shared.context,
            "adapter": self.adapter is not None,
            "system": self.system,
            **({"thinking": self.thinking} if self.thinking else {}),
        }

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """See `Engine.complete`; a batch is what has finished since the last one; drafts are ignored."""
        rows = encode_prompts(
            self.tokenizer, prompts, self.system, params.max_tokens, self.shared.context, self.thinking
        )
        samples = sample_indices(prompts, params)
        keys = [sample_key(prompts[i].id, sample) for i, sample in samples]
        (order,) = plan_batches([len(rows[i]) for i, _ in samples], len(samples))
        finished = frozenset(done)
        pending = [n for n in order if keys[n] not in finished]
        sampling = [vllm_params(params, keys[n], self.stops) for n in pending]
        for batch in self.shared.generate([rows[samples[n][0]] for n in pending], sampling, self.adapter):
            made = [(samples[pending[at]], list(output.outputs[0].token_ids)) for at, output in batch]
            yield [
                decode_completion(
                    self.tokenizer,
                    tokens,
                    self.stops,
                    prompts[i].id,
                    sample,
                    rows[i],
                    len(prefill_tokens(self.tokenizer, prompts[i])),
                )
                for (i, sample), tokens in made
            ]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """See `Engine.likelihood`; a batch is what has finished since the last one."""
        import vllm

        # vLLM generates at least one token
        encoded = encode_examples(
            self.tokenizer, examples, self.system, self.shared.context, reserve=1, thinking=self.thinking
        )
        params = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, **_final())
        finished = frozenset(done)
        (order,) = plan_batches([len(row) for row, _ in encoded], len(encoded))
        pending = [i for i in order if examples[i].id not in finished]
        for batch in self.shared.generate([encoded[i][0] for i in pending], [params] * len(pending), self.adapter):
            made = [(pending[at], output.prompt_logprobs) for at, output in batch]
            yield [
                Likelihood(
                    prompt_id=examples[i].id,
                    nll=response_nll(logprobs, *encoded[i]),
                    tokens=len(encoded[i][0]) - encoded[i][1],
                )
                for i, logprobs in made
            ]

    def close(self) -> None:
        """End the running engine, for all that share it."""
        self.shared.close()


def open_tokenizer(opened: ModelFolder) -> tuple[Any, frozenset[int]]:
    """A model's tokenizer, and the tokens that end its responses."""
    tokenizer = opened.load_tokenizer()
    return tokenizer, stop_tokens(_generation_config(opened.base), tokenizer)


def vllm_params(params: SamplingParams, key: str, stops: Collection[int]) -> Any:
    """vLLM's parameters for one response, with a seed of its own."""
    import vllm

    common: dict[str, Any] = {
        "n": 1,
        "max_tokens": params.max_tokens,
        "repetition_penalty": params.repetition_penalty,
        "stop_token_ids": sorted(stops),
        "detokenize": False,  # `decode_completion` does it for all engines
        **_final(),
    }
    if params.temperature == 0:
        return vllm.SamplingParams(temperature=0.0, **common)
    return vllm.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k or -1,  # −1 means all in every version, 0 only in newer ones
        seed=response_seed(params.seed, key),
        **common,
    )


def response_nll(logprobs: Sequence[Any], row: Sequence[int], start: int) -> float:
    """−Σ log p of the tokens of `row` from `start` on, in nats.

    `logprobs` are vLLM's: for each token but the first, a mapping of token ids to objects with a `logprob`.
    """
    return -sum(float(logprobs[i][row[i]].logprob) for i in range(start, len(row)))


def lora_options(adapter: Adapter) -> LoraOptions:
    """What vLLM must be started with to apply an adapter; ModelError if it cannot apply it."""
    config = adapter.config
    modules = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in adapter.changes})
    unsupported = beyond_plain(config)
    unsupported += ["single experts"] if any(".experts." in name for name in adapter.changes) else []
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    # With an adapter of the head, prompt log-probabilities fail (seen with 0.32 on CPU).
    unsupported += [name for name in modules if name in ("lm_head", "embed_tokens")]
    rank = max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])
    unsupported += [f"rank {rank}"] if rank > RANKS[-1] else []
    if unsupported:
        message = f"{adapter.folder}: vLLM cannot apply this adapter ({', '.join(unsupported)})"
        raise ModelError(message, "merge it into its base (`mooring merge --lam 1`)", code="model.unsupported_adapter")
    return LoraOptions(rank=rank, modules=tuple(modules))


def _final() -> dict[str, Any]:
    """A request's output is returned once, when it has finished."""
    from vllm.sampling_params import RequestOutputKind

    return {"output_kind": RequestOutputKind.FINAL_ONLY}


def _generation_config(folder: Path) -> Any:
    import transformers

    if (folder / "generation_config.json").is_file():
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return transformers.GenerationConfig.from_model_config(load_config(folder))
