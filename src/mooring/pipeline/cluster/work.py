"""What a worker does: it loads a source, and answers, or scores, one batch of prompts after another. No Ray here."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mooring import plugins
from mooring.errors import UserError
from mooring.inference.engine import Engine
from mooring.inference.token_engine import Sample, TokenEngine
from mooring.merge_point import BASE, MergePoint
from mooring.pipeline.cluster.sources import Loaded, Source
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams

R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer one batch of prompts; a prompt is repeated for each of its samples."""

    point: MergePoint
    batch: Sequence[Sample]
    params: SamplingParams


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Compute the likelihoods of one batch of references."""

    point: MergePoint
    batch: Sequence[Prompt]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker's process has in common with the one that sends it units.

    Attributes:
        folder: The folder that the recipe's paths are relative to; None if only that process has it.
        threads: torch's threads, on which sums depend in their last bits.
        plugins: The recipe's plug-ins.
    """

    folder: str | None
    threads: int
    plugins: Sequence[str] = ()

    def apply(self) -> None:
        """Make this process like it."""
        import torch

        if self.folder is not None:
            os.chdir(self.folder)
        for reference in self.plugins:
            plugins.load(reference)
        torch.set_num_threads(self.threads)

    @classmethod
    def of_this_process(cls, loaded: Sequence[str], *, shared: bool) -> "Setup":
        """What workers should have in common with this process; `shared` is whether they see its folder."""
        import torch

        folder = str(Path.cwd()) if shared else None
        return cls(folder=folder, threads=torch.get_num_threads(), plugins=tuple(loaded))


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """An error for the user, as plain values: what `UserError` is made from."""

    kind: type[UserError]
    message: str
    hint: str
    code: str

    def error(self) -> UserError:
        """The error."""
        if not issubclass(self.kind, UserError) or self.kind.__init__ is not UserError.__init__:
            return UserError(self.message, self.hint, code=self.code)
        return self.kind(self.message, self.hint, code=self.code)


class Worker:
    """A process that does units, with one source loaded."""

    def __init__(self, source: Source, setup: Setup) -> None:
        setup.apply()
        self._source = source
        self._loaded: Loaded | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="mooring-worker-")

    def load(self) -> Failure | None:
        """Load the source; for models, at the base."""
        found = caught(lambda: self._at(BASE))
        return found if isinstance(found, Failure) else None

    def do(self, work: Answer | Measure) -> list[Completion] | list[Likelihood] | Failure:
        """Do the work of a unit. Completions carry what the engine says of itself."""
        return caught(lambda: _do(self._at(work.point), work))

    def _at(self, point: MergePoint) -> Engine:
        if self._loaded is None:
            self._loaded = self._source.load(Path(self._scratch.name))
        return self._loaded.at(point)


def _do(engine: Engine, work: Answer | Measure) -> list[Completion] | list[Likelihood]:
    if isinstance(work, Measure):
        if isinstance(engine, TokenEngine):
            return engine.likelihood_batch(work.batch)
        return [each for part in engine.likelihood(work.batch) for each in part]
    made = _complete(engine, work)
    return [dataclasses.replace(each, made_by={"engine": dict(engine.about), **each.made_by}) for each in made]


def _complete(engine: Engine, work: Answer) -> list[Completion]:
    if isinstance(engine, TokenEngine):
        return engine.complete_batch(work.batch, work.params)
    prompts = list({prompt.id: prompt for prompt, _ in work.batch}.values())
    wanted = {sample_key(prompt.id, sample) for prompt, sample in work.batch}
    every = {sample_key(prompt.id, sample) for prompt in prompts for sample in range(work.params.n)}
    return [each for part in engine.complete(prompts, work.params, done=every - wanted) for each in part]


def caught(work: Callable[[], R]) -> R | Failure:
    """The result of some work, or the error that the user can do something about."""
    try:
        with _memory_named():
            return work()
    except UserError as error:
        return Failure(type(error), error.message, error.hint, error.code)


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    """Say which setting helps where a batch does not fit the memory: its size is part of the recipe on a cluster."""
    import torch

    from mooring.errors import ModelError

    try:
        yield
    except torch.OutOfMemoryError:
        hint = "set a smaller `batch_size`, or more `gpus_per_engine`"
        raise ModelError(
            "a batch does not fit the memory of a worker's GPU", hint, code="model.out_of_memory"
        ) from None
