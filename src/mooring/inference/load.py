"""The loaders of engines. To add one: write its file, add its loader here and its name to `mooring.engines`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mooring.config import Runner
from mooring.engines import ENGINES
from mooring.inference.engine import Engine

if TYPE_CHECKING:
    from mooring.inference.servers import Servers


def load_engine(model: Path | str | None, runner: Runner, system: str | None, log: Path | None = None) -> Engine:
    """Open a model with the engine that a recipe names.

    Args:
        model: Folder of a full checkpoint, or of a LoRA adapter whose base is on this machine. With `openai`, the
            model's name on the server, or None for the only one there.
        runner: The recipe's `generate` section, or a judge's section.
        system: System prompt for prompts that have none.
        log: File that the engine's own logs are appended to (vllm); by default a temporary one, see `engine_logs`.

    Raises:
        ModelError: The folder does not hold a model that can be loaded, or the server has no such model.
        MissingExtraError: The engine's package is not installed.
    """
    loader = LOADERS.get(runner.engine) or ENGINES[runner.engine].load
    assert loader is not None
    engine: Engine = loader(model, runner, system, log)
    return engine


def close_engine(engine: Engine) -> None:
    """Free what an engine holds outside of this process, such as vLLM's processes."""
    close = getattr(engine, "close", None)
    if close is not None:
        close()


def _transformers(model: Path | str | None, runner: Runner, system: str | None, log: Path | None) -> Engine:
    from mooring.inference.fit import check_fits_cpu
    from mooring.inference.transformers import TransformersEngine

    check_fits_cpu(Path(str(model)), runner.dtype, runner.device)
    return TransformersEngine.load(
        Path(str(model)),
        system=system,
        batch_size=runner.batch_size,
        dtype=runner.dtype,
        device=runner.device,
        thinking=runner.thinking,
    )


def _vllm(model: Path | str | None, runner: Runner, system: str | None, log: Path | None) -> Engine:
    from mooring.inference.vllm import VLLMEngine
    from mooring.inference.vllm_shared import VLLMOptions

    options = VLLMOptions.of(runner)
    return VLLMEngine.load(Path(str(model)), system=system, options=options, log=log, thinking=runner.thinking)


def _openai(model: Path | str | None, runner: Runner, system: str | None, log: Path | None) -> Engine:
    from mooring.inference.openai import OpenAIEngine

    name = None if model is None else str(model)
    return OpenAIEngine(servers_of(runner), name, system=system, thinking=runner.thinking)


def servers_of(runner: Runner) -> "Servers":
    """The servers that a recipe's section names, within its limits.

    Raises:
        RecipeError: An address is not an http address, or contains credentials.
    """
    from mooring.inference.retry import RequestLimits
    from mooring.inference.servers import Servers

    limits = RequestLimits(concurrency=runner.concurrency, requests_per_minute=runner.requests_per_minute)
    return Servers(runner.base_url, runner.key_env, limits)


LOADERS: Mapping[str, Callable[[Path | str | None, Runner, str | None, Path | None], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "openai": _openai,
}
"""Loaders by name. Each imports its engine when it is called, so that only that engine's libraries are loaded."""
