"""The engine on vLLM, in this process: tokens go in, and text comes out, as with the engine on transformers."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import MissingExtraError, ModelError
from mooring.inference.encode import decode_completion, encode_examples, encode_prompts, response_seed, stop_tokens
from mooring.inference.engine import plan_batches, sample_indices, unfinished
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams

# --- What vLLM must be told about a model folder before it opens it ---


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for (`MaxLoRARanks` in its configuration)."""


def find_base(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The full checkpoint in a folder, or the base of the adapter in it and the adapter's configuration.

    Raises:
        ModelError: There is no such folder, it holds no model, or the adapter's base is not on this machine.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "name a folder with a model in it")
    path = folder / "adapter_config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            base = Path(str(config["base_model_name_or_path"]))
        except (ValueError, TypeError, KeyError):
            raise ModelError(f"{path}: is no adapter's configuration", "is the folder whole?") from None
        if not base.is_dir():
            raise ModelError(f"{folder}: its base model {base} is not a folder here", "put the base model there")
        return base, config
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: has no config.json", "is it a model's folder?")
    return folder, None


def lora_room(folder: Path, config: Mapping[str, Any]) -> int:
    """The rank to make room for.

    Raises:
        ModelError: The adapter is of a kind that vLLM does not apply.
    """
    odd = [key for key in ("modules_to_save", "use_dora", "alora_invocation_tokens") if config.get(key)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    rank = int(config.get("r") or 0)
    odd += [f"rank {rank}"] if rank > RANKS[-1] else []
    # vLLM scales a whole adapter by one number.
    odd += [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if odd or config.get("peft_type", "LORA") != "LORA":
        what = ", ".join(odd) or str(config.get("peft_type"))
        raise ModelError(f"{folder}: vLLM cannot apply this adapter ({what})", "merge it at λ = 1 first")
    return next(room for room in RANKS if room >= rank)


def weight_type(folder: Path) -> str:
    """The type that a checkpoint says it is stored in, `auto` where it says none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    found = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return found if found in ("bfloat16", "float16", "float32") else "auto"


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def ends(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a response, as the engine `transformers` finds them."""
    import transformers

    if (folder / "generation_config.json").is_file():
        config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        model = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = transformers.GenerationConfig.from_model_config(model)
    return stop_tokens(config, tokenizer)


Dtype = Literal["auto", "bfloat16", "float16", "float32"]


class VLLMEngine:
    """A model in vLLM.

    vLLM's own scheduler batches requests; `batch_size` only says after how many of them answers are handed over.
    The checkpoint's generation config is left aside, but for the tokens that end a response.

    Args:
        llm: A `vllm.LLM`.
        tokenizer: The model's tokenizer, from transformers, with a chat template.
        stops: Tokens that end a response.
        system: System prompt for prompts that bring none.
        batch_size: Answers a batch.
        adapter: A `LoRARequest` for every request; `None` asks the model as it is.
        options: What it was opened with, for the record.
    """

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
        self.llm = llm
        self.tokenizer = tokenizer
        self.stops = frozenset(stops)
        self.system = system
        self.batch_size = batch_size
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
        gpu_memory: float = 0.9,
        batch_size: int = 256,
    ) -> "VLLMEngine":
        """Open a full checkpoint, or a LoRA adapter on the base that it names. No code of the folder is run.

        Args:
            folder: Where the model is.
            system: System prompt for prompts that bring none.
            dtype: Type of the weights in memory; `auto` is the checkpoint's own, float32 too, which vLLM by itself
                would make a half.
            tensor_parallel: GPUs that share the model.
            max_model_len: Longest prompt and response together, in tokens; the model's own where it is not given.
            gpu_memory: Share of each GPU's memory that vLLM may take.
            batch_size: Answers a batch.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelError: The folder is no model, or one that vLLM cannot load.
        """
        try:
            import transformers
            import vllm
            from vllm.lora.request import LoRARequest
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "vllm":
                raise
            raise MissingExtraError("vllm", "pip install 'mooring[vllm]'") from None

        folder = Path(folder)
        base, lora = find_base(folder)
        adapter, options = None, {}
        if lora is not None:
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_room(folder, lora)}
            adapter = LoRARequest(folder.name or "adapter", 1, str(folder.resolve()))
        own = lora is None or (folder / "tokenizer_config.json").is_file()
        try:
            tokenizer = load_tokenizer(folder if own else base)
            stops = ends(base, tokenizer)
            llm = vllm.LLM(
                model=str(base),
                tokenizer=str(folder if own else base),
                trust_remote_code=False,
                generation_config="vllm",
                dtype=weight_type(base) if dtype == "auto" else dtype,
                tensor_parallel_size=tensor_parallel,
                max_model_len=max_model_len,
                gpu_memory_utilization=gpu_memory,
                **options,
            )
        except Exception as error:  # whatever a loader meets in a broken folder, in one line
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelError(f"{folder}: vLLM cannot load it ({reason})", "does engine transformers?") from error
        made_with = {
            "vllm": vllm.__version__,
            "transformers": transformers.__version__,
            "tensor_parallel": tensor_parallel,
        }
        return cls(llm, tokenizer, stops, system=system, batch_size=batch_size, adapter=adapter, options=made_with)

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its response together."""
        return int(self.llm.llm_engine.model_config.max_model_len)

    @property
    def about(self) -> Mapping[str, Any]:
        """As `Engine.about`."""
        return {
            "engine": "vllm",
            **self.options,
            "dtype": str(self.llm.llm_engine.model_config.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "adapter": self.adapter is not None,
            "batch_size": self.batch_size,
            "system": self.system,
        }

    def complete(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, done: Collection[str] = ()
    ) -> Iterator[list[Completion]]:
        """As `Engine.complete`. Sampling is seeded for each answer; vLLM draws its own numbers from the seed."""
        rows = encode_prompts(self.tokenizer, prompts, self.system, params.max_tokens, self.context)
        asked = sample_indices(prompts, params)
        keys = [sample_key(prompts[i].id, sample) for i, sample in asked]
        for batch in unfinished(plan_batches([len(rows[i]) for i, _ in asked], self.batch_size), keys, done):
            which = [asked[number] for number in batch]
            answers = self._generate(
                [rows[i] for i, _ in which], [self._params(params, keys[number]) for number in batch]
            )
            yield [
                decode_completion(self.tokenizer, list(answer.outputs[0].token_ids), self.stops, prompts[i].id, sample)
                for (i, sample), answer in zip(which, answers, strict=True)
            ]

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """As `Engine.likelihood`, by vLLM's log-probabilities of prompt tokens; it writes one token more, unused."""
        encoded = encode_examples(self.tokenizer, examples, self.system, self.context, reserve=1)
        batches = plan_batches([len(row) for row, _ in encoded], self.batch_size)
        import vllm

        request = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        for batch in unfinished(batches, [example.id for example in examples], done):
            answers = self._generate([encoded[i][0] for i in batch], [request] * len(batch))
            yield [
                Likelihood(
                    prompt_id=examples[i].id,
                    nll=response_nll(answer.prompt_logprobs, *encoded[i]),
                    tokens=len(encoded[i][0]) - encoded[i][1],
                )
                for i, answer in zip(batch, answers, strict=True)
            ]

    def _generate(self, rows: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        asked = [{"prompt_token_ids": row} for row in rows]
        answers: list[Any] = self.llm.generate(asked, list(params), use_tqdm=False, lora_request=self.adapter)
        return answers

    def _params(self, params: SamplingParams, key: str) -> Any:
        import vllm

        common: dict[str, Any] = {
            "n": 1,
            "max_tokens": params.max_tokens,
            "repetition_penalty": params.repetition_penalty,
            "stop_token_ids": sorted(self.stops),
            "detokenize": False,  # done here, as for every engine
        }
        if params.temperature == 0:
            return vllm.SamplingParams(temperature=0.0, **common)
        return vllm.SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k or -1,  # −1 is "all" in every version, 0 only in newer ones
            seed=response_seed(params.seed, key),
            **common,
        )


def response_nll(logprobs: Sequence[Any], row: Sequence[int], start: int) -> float:
    """−Σ log p, in nats, of the tokens after the prompt.

    Args:
        logprobs: What vLLM gives for a prompt: for each token, none for the first, a mapping of token ids to objects
            with a `logprob`.
        row: All tokens.
        start: How many of them are the prompt's.
    """
    return -sum(float(logprobs[place][row[place]].logprob) for place in range(start, len(row)))
