"""The registry of sweeps by engine. Each import loads only that engine's libraries."""

from pathlib import Path

from mooring.pipeline.sweeps.folders import FolderSweep
from mooring.pipeline.sweeps.sweep import Sweep, SweepSpec


def open_sweep(spec: SweepSpec, scratch: Path) -> Sweep:
    """The sweep for the engine that a recipe names. Loads no model yet.

    Args:
        spec: The models, and how they are merged and run.
        scratch: A folder for what is written temporarily; it is removed when the sweep is closed.
    """
    if spec.runner.engine == "transformers":
        from mooring.pipeline.sweeps.transformers import TransformersSweep

        return TransformersSweep(spec, scratch)
    if spec.runner.engine == "openai":
        from mooring.pipeline.sweeps.server import ServerSweep

        return ServerSweep(spec, scratch)
    if spec.runner.engine == "vllm":
        from mooring.pipeline.sweeps.vllm import VLLMSweep

        return VLLMSweep(spec, scratch)
    return FolderSweep(spec, scratch)
