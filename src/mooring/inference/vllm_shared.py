"""A running vLLM engine that any number of threads share: their requests are one stream, which vLLM batches."""

import dataclasses
import itertools
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mooring.config import GPU_MEMORY, Runner
from mooring.errors import MissingExtraError
from mooring.inference.fit import check_fits
from mooring.inference.folder import Dtype, stored_dtype

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM supports (`MaxLoRARanks` in its configuration)."""

SHUTDOWN_TIMEOUT = 5.0
"""Seconds after which processes of the engine that have not exited are killed."""

OWNER = "MOORING_OWNER"
"""Environment variable with the id of the process that started the engine; see `vllm_owner`."""

WATCH = "mooring.inference.vllm_owner.OwnedWorker"
"""The worker extension that ends vLLM's processes with this one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VLLMOptions:
    """How vLLM runs a model.

    Attributes:
        dtype: Type of the weights in memory; `auto` keeps float32 too, which vLLM would convert to float16.
        tensor_parallel: Number of GPUs that share the model.
        max_model_len: Maximum number of tokens of prompt and response together; None is the model's own.
        gpu_memory: Share of each GPU's memory that vLLM may use, from 0 to 1.
        enforce_eager: Whether to run without compilation and CUDA graphs: a sooner start, slower generation.
    """

    dtype: Dtype = "auto"
    tensor_parallel: int = 1
    max_model_len: int | None = None
    gpu_memory: float = GPU_MEMORY
    enforce_eager: bool = False

    @classmethod
    def of(cls, runner: Runner) -> "VLLMOptions":
        """The options of a recipe's section."""
        return cls(
            dtype=runner.dtype,
            tensor_parallel=runner.tensor_parallel,
            max_model_len=runner.max_model_len,
            gpu_memory=runner.gpu_memory or GPU_MEMORY,
            enforce_eager=runner.enforce_eager,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class LoraOptions:
    """What vLLM needs to know of the adapters before it starts.

    Attributes:
        rank: The largest rank.
        modules: Names of the modules that are changed, such as `q_proj`. Only these are prepared for adapters.
        count: Number of adapters in one batch.
    """

    rank: int
    modules: tuple[str, ...]
    count: int = 1


class SharedLLM:
    """A `vllm.LLM`, whose requests may come from several threads at the same time.

    Args:
        llm: A `vllm.LLM`.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._engine = llm.llm_engine
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._adapters = itertools.count(1)
        self._inboxes: dict[str, tuple[queue.SimpleQueue[tuple[int, Any]], int]] = {}

    @classmethod
    def start(
        cls,
        folder: Path,
        options: VLLMOptions,
        *,
        tokenizer: Path | None = None,
        lora: LoraOptions | None = None,
        worker_extension: str = WATCH,
    ) -> "SharedLLM":
        """Start vLLM on a full checkpoint. No code of the folder is run.

        Args:
            folder: The checkpoint.
            options: How it is run.
            tokenizer: Folder of the tokenizer; defaults to the checkpoint's.
            lora: The adapters that will be used; None for no adapters.
            worker_extension: Qualified name of a class whose methods vLLM's workers get; it extends `OwnedWorker`.

        Raises any exception of vLLM, MissingExtraError if it is not installed, or ModelError if the weights do not fit;
        see `vllm_errors.starting`.
        """
        vllm = import_vllm()
        share, gpus, dtype = options.gpu_memory, options.tensor_parallel, options.dtype
        check_fits(folder, dtype, device_memory(), gpus=gpus, share=share)
        adapters: dict[str, Any] = {}
        if lora is not None:
            rank = next(known for known in RANKS if known >= lora.rank)
            adapters = {"enable_lora": True, "max_loras": lora.count, "max_lora_rank": rank}
            adapters["lora_target_modules"] = list(lora.modules)
        os.environ[OWNER] = str(os.getpid())
        return cls(
            vllm.LLM(
                model=str(folder),
                tokenizer=str(tokenizer or folder),
                trust_remote_code=False,
                generation_config="vllm",
                dtype=stored_dtype(folder) if dtype == "auto" else dtype,
                tensor_parallel_size=gpus,
                max_model_len=options.max_model_len,
                gpu_memory_utilization=share,
                enforce_eager=options.enforce_eager,
                worker_extension_cls=worker_extension,
                **adapters,
            )
        )

    @property
    def context(self) -> int:
        """Maximum number of tokens of prompt and response together."""
        return int(self._engine.model_config.max_model_len)

    @property
    def dtype(self) -> str:
        """The type of the weights, as torch names it."""
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    def adapter(self, folder: Path) -> Any:
        """A `LoRARequest` for an adapter, loaded.

        Raises any exception of vLLM if it cannot apply the adapter.
        """
        from vllm.lora.request import LoRARequest

        request = LoRARequest(folder.name or "adapter", next(self._adapters), str(folder.resolve()))
        with self._lock:
            self._engine.add_lora(request)
        return request

    def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension in every worker, and forget the cached prefixes of prompts."""
        with self._lock:
            results: list[Any] = self.llm.collective_rpc(method, args=args)
            self.llm.reset_prefix_cache()
        return results

    def generate(
        self, rows: Sequence[list[int]], params: Sequence[Any], adapter: Any = None
    ) -> Iterator[list[tuple[int, Any]]]:
        """Run requests; yield (index, `RequestOutput`) of those that have finished, as soon as they have.

        Args:
            rows: The tokens of each prompt.
            params: A `vllm.SamplingParams` for each.
            adapter: A `LoRARequest`; None for the model itself.
        """
        inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        ids = [str(next(self._ids)) for _ in rows]
        try:
            for index, (id_, row, one) in enumerate(zip(ids, rows, params, strict=True)):
                with self._lock:
                    self._inboxes[id_] = inbox, index
                    self._engine.add_request(id_, {"prompt_token_ids": row}, one, lora_request=adapter)
            left = len(ids)
            while left:
                finished = self._wait(inbox)
                left -= len(finished)
                yield finished
        finally:  # the caller stopped early, or the engine failed
            if unfinished := [id_ for id_ in ids if id_ in self._inboxes]:
                with self._lock:
                    for id_ in unfinished:
                        self._inboxes.pop(id_, None)
                    self._engine.abort_request(unfinished)

    def close(self) -> None:
        """Shut down the engine's processes and wait for them to exit."""
        core = getattr(self._engine, "engine_core", None)
        if core is not None:
            core.shutdown(timeout=SHUTDOWN_TIMEOUT)

    def _wait(self, inbox: "queue.SimpleQueue[tuple[int, Any]]") -> list[tuple[int, Any]]:
        """Wait for a request of this inbox. Whichever thread has the lock runs a step of the engine for all threads."""
        while True:
            with self._lock:
                if inbox.empty():
                    for output in self._engine.step():
                        if output.finished and output.request_id in self._inboxes:
                            box, index = self._inboxes.pop(output.request_id)
                            box.put((index, output))
            if not inbox.empty():
                return [inbox.get() for _ in range(inbox.qsize())]


def import_vllm() -> Any:
    """The package vllm; MissingExtraError if it is not installed."""
    try:
        import vllm
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        raise MissingExtraError("vllm", "pip install 'mooring[vllm]'", code="extra.vllm") from None
    return vllm


def device_memory() -> int:
    """Bytes of memory of one of the devices that vLLM runs on; 0 if that is not known."""
    try:
        from vllm.platforms import current_platform

        return int(current_platform.get_device_total_memory(0))
    except Exception:  # a platform of vLLM that does not tell
        return 0
