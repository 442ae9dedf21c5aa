"""The engine on vLLM, in this process: tokens in and tokens out, as in the engine on transformers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.chat import DEFAULT_SYSTEM
from mooring.config import GPU_MEMORY
from mooring.errors import MissingExtraError, ModelError
from mooring.inference.encode import response_seed, stop_tokens
from mooring.inference.folder import Dtype, ModelFolder, open_folder
from mooring.inference.token_engine import Encoded, TokenEngine
from mooring.inference.vllm_errors import starting
from mooring.models import read_config
from mooring.sampling import SamplingParams

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM supports (`MaxLoRARanks` in its configuration)."""


class VLLMEngine(TokenEngine):
    """A model in vLLM.

    vLLM's own scheduler batches requests; `batch_size` only sets after how many responses they are yielded. Of the
    checkpoint's generation config, only the stop tokens have an effect.

    Args:
        llm: A `vllm.LLM`.
        tokenizer: The model's tokenizer, from transformers, with a chat template.
        stops: Tokens that end a response.
        system: System prompt for prompts that have none.
        batch_size: Responses per batch.
        adapter: A `LoRARequest` for each request; None for the model itself.
        options: The versions and options that the model was opened with, for `about`.
    """

    reserve = 1  # vLLM generates at least one token

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        stops: Collection[int],
        *,
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int = 256,
        adapter: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tokenizer, stops, system=system, batch_size=batch_size)
        self.llm = llm
        self.adapter = adapter
        self.options = dict(options or {})

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        system: str | None = DEFAULT_SYSTEM,
        dtype: Dtype = "auto",
        tensor_parallel: int = 1,
        max_model_len: int | None = None,
        gpu_memory: float = GPU_MEMORY,
        enforce_eager: bool = False,
        batch_size: int = 256,
        log: Path | None = None,
    ) -> "VLLMEngine":
        """Open a full checkpoint, or a LoRA adapter on its base. No code of the folder is run.

        Args:
            folder: Where the model is.
            system: System prompt for prompts that have none.
            dtype: Type of the weights in memory; `auto` keeps float32 too, which vLLM would convert to float16.
            tensor_parallel: Number of GPUs that share the model.
            max_model_len: Maximum number of tokens of prompt and response together; defaults to the model's own.
            gpu_memory: Share of each GPU's memory that vLLM may use.
            enforce_eager: Whether to run without compilation and CUDA graphs: a sooner start, slower generation.
            batch_size: Responses per batch.
            log: File that vLLM's logs are appended to; by default a temporary one, see `engine_logs`.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelError: The folder does not hold a model, or one that vLLM cannot load.
        """
        with starting(Path(folder), log):
            try:
                import transformers
                import vllm
                from vllm.lora.request import LoRARequest
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "vllm":
                    raise
                raise MissingExtraError("vllm", "pip install 'mooring[vllm]'", code="extra.vllm") from None

            opened = open_folder(Path(folder))
            adapter, lora_options = None, {}
            if opened.adapter is not None:
                rank = max_lora_rank(opened.path, opened.adapter)
                lora_options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
                adapter = LoRARequest(opened.path.name or "adapter", 1, str(opened.path.resolve()))
            tokenizer = opened.load_tokenizer()
            stops = stop_tokens(_generation_config(opened), tokenizer)
            llm = vllm.LLM(
                model=str(opened.base),
                tokenizer=str(opened.tokenizer),
                trust_remote_code=False,
                generation_config="vllm",
                dtype=stored_dtype(opened.base) if dtype == "auto" else dtype,
                tensor_parallel_size=tensor_parallel,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory,
                enforce_eager=enforce_eager,
                **lora_options,
            )
            versions = {"vllm": vllm.__version__, "transformers": transformers.__version__}
            options = {**versions, "tensor_parallel": tensor_parallel, "enforce_eager": enforce_eager}
            return cls(llm, tokenizer, stops, system=system, batch_size=batch_size, adapter=adapter, options=options)

    @property
    def context(self) -> int:
        """See `TokenEngine.context`."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    @property
    def about(self) -> Mapping[str, Any]:
        """See `Engine.about`."""
        return {
            "engine": "vllm",
            **self.options,
            "dtype": str(self.llm.llm_engine.model_config.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "adapter": self.adapter is not None,
            "batch_size": self.batch_size,
            "system": self.system,
        }

    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        outputs = self._run(rows, [self._vllm_params(params, key) for key in keys])
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _score(self, examples: list[Encoded]) -> list[float]:
        import vllm

        params = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._run([row for row, _ in examples], [params] * len(examples))
        return [response_nll(o.prompt_logprobs, *example) for o, example in zip(outputs, examples, strict=True)]

    def _run(self, rows: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs: list[Any] = self.llm.generate(prompts, list(params), use_tqdm=False, lora_request=self.adapter)
        return outputs

    def _vllm_params(self, params: SamplingParams, key: str) -> Any:
        """vLLM's parameters for one response, with a seed of its own."""
        import vllm

        common: dict[str, Any] = {
            "n": 1,
            "max_tokens": params.max_tokens,
            "repetition_penalty": params.repetition_penalty,
            "stop_token_ids": sorted(self.stops),
            "detokenize": False,  # `decode_completion` does it for all engines
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


def max_lora_rank(folder: Path, config: Mapping[str, Any]) -> int:
    """The smallest rank that vLLM supports and that holds an adapter; ModelError if vLLM cannot apply it."""
    unsupported = [key for key in ("modules_to_save", "use_dora", "alora_invocation_tokens") if config.get(key)]
    unsupported += ["bias"] if config.get("bias", "none") != "none" else []
    rank = int(config.get("r") or 0)
    unsupported += [f"rank {rank}"] if rank > RANKS[-1] else []
    # vLLM scales a whole adapter by one number.
    unsupported += [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if unsupported or config.get("peft_type", "LORA") != "LORA":
        reasons = ", ".join(unsupported) or str(config.get("peft_type"))
        message = f"{folder}: vLLM cannot apply this adapter ({reasons})"
        raise ModelError(message, "merge it at λ = 1 first", code="model.unsupported_adapter")
    return next(supported for supported in RANKS if supported >= rank)


def stored_dtype(folder: Path) -> str:
    """The type of a checkpoint's weights according to its configuration; `auto` if it names none."""
    config = read_config(folder)
    config = config.get("text_config") or config
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16", "float32") else "auto"


def _generation_config(folder: ModelFolder) -> Any:
    import transformers

    if (folder.base / "generation_config.json").is_file():
        return transformers.GenerationConfig.from_pretrained(folder.base, local_files_only=True)
    config = transformers.AutoConfig.from_pretrained(folder.base, local_files_only=True, trust_remote_code=False)
    return transformers.GenerationConfig.from_model_config(config)
