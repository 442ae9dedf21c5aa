"""A cluster as an engine: prompts are cut into units here, and answered by whichever worker is idle."""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mooring.config import Runner
from mooring.inference.engine import sample_indices
from mooring.inference.folder import open_folder
from mooring.inference.token_engine import Encoded, Sample, TokenEngine
from mooring.merge_point import MergePoint
from mooring.merging.in_memory import OpenMerge
from mooring.models.classes import context_length, load_config, load_tokenizer, vocab_size
from mooring.pipeline.cluster.units import Unit, shards
from mooring.pipeline.cluster.work import Answer, Measure
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.quiet import quiet
from mooring.records import Completion, Likelihood, Prompt, sample_key
from mooring.sampling import SamplingParams

UNIT = 32
"""Responses of a unit, unless `batch_size` says otherwise; as many as in a batch on the CPU."""
R = TypeVar("R")
Submit = Callable[[Sequence[Unit]], Iterator[tuple[Unit, Any]]]
"""Has units done, and yields each with its result as it comes; the result of a unit that was given up is None."""
_requests = itertools.count()


def fixed(runner: Runner) -> Runner:
    """A runner whose batches do not depend on the memory of the worker that has them."""
    if runner.engine != "transformers" or runner.batch_size is not None:
        return runner
    return runner.model_copy(update={"batch_size": UNIT})


class Batches(TokenEngine):
    """Cuts prompts into the batches that the engine `transformers` would make of them; runs no model."""

    def __init__(self, folder: Path, base: Path, runner: Runner, system: str | None) -> None:
        from mooring.inference.transformers import score_batch_size

        with quiet("transformers"):
            tokenizer, config = load_tokenizer(folder), load_config(base)
        super().__init__(tokenizer, (), system=system, batch_size=runner.batch_size or UNIT, thinking=runner.thinking)
        self._context, self._vocabulary, self._fit = context_length(config), vocab_size(config), score_batch_size

    @property
    def context(self) -> int | None:
        """See `TokenEngine.context`."""
        return self._context

    def _generate(self, rows: list[list[int]], keys: list[str], params: SamplingParams) -> list[list[int]]:
        raise NotImplementedError

    def _score(self, examples: list[Encoded]) -> list[float]:
        raise NotImplementedError

    def _score_batch_size(self, encoded: Sequence[Encoded]) -> int:
        return self._fit(encoded, self.batch_size, self._vocabulary)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterEngine:
    """A model of a run, or a judge, on the workers of a cluster. Implements `Engine`.

    For `transformers` units are the batches that one process would make of all prompts, so that the results are the
    same bits whoever does them. A prompt whose unit was given up has a completion that is `lost`.

    Attributes:
        submit: Has units done.
        kind: The kind of workers that can do them.
        point: The model; for a judge, any.
        runner: The engine that the workers run, and its options.
        system: System prompt for prompts that have none.
        plan: Cuts prompts into batches; None for an engine that makes its own.
    """

    submit: Submit
    kind: str
    point: MergePoint
    runner: Runner
    system: str | None
    plan: Batches | None

    @property
    def about(self) -> Mapping[str, Any]:
        """See `Engine.about`; what only the workers know is in their completions."""
        return {"engine": self.runner.engine, "batch_size": self.runner.batch_size, "system": self.system}

    def complete(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        done: Collection[str] = (),
        drafts: Mapping[str, str] | None = None,
    ) -> Iterator[list[Completion]]:
        """See `Engine.complete`; drafts are ignored."""
        batches = self._shards(prompts, params, done) if self.plan is None else self.plan.batches(prompts, params, done)
        units = self._units([[prompt.id for prompt, _ in batch] for batch in batches])
        work = {
            unit.key: dataclasses.replace(unit, work=Answer(point=self.point, batch=batch, params=params))
            for unit, batch in zip(units, batches, strict=True)
        }
        for unit, result in self.submit([*work.values()]):
            if result is None:
                batch = work[unit.key].work.batch
                result = [Completion(prompt_id=p.id, text="", tokens=0, finish="lost", sample=n) for p, n in batch]
            yield result

    def likelihood(self, examples: Sequence[Prompt], *, done: Collection[str] = ()) -> Iterator[list[Likelihood]]:
        """See `Engine.likelihood`.

        Raises:
            ClusterError: The unit of an example was given up (`cluster.lost`): a loss has no value for it.
        """
        if self.plan is None:
            left = [example for example in examples if example.id not in done]
            batches = [[left[i] for i in shard] for shard in shards(len(left), UNIT)]
        else:
            batches = self.plan.likelihood_batches(examples, done)
        units = self._units([[example.id for example in batch] for batch in batches])
        lost: list[str] = []
        work = [
            dataclasses.replace(unit, work=Measure(point=self.point, batch=batch))
            for unit, batch in zip(units, batches, strict=True)
        ]
        for unit, result in self.submit(work):
            if result is None:
                lost += unit.prompts
            else:
                yield result
        if lost:
            from mooring.errors import ClusterError

            what = f"{len(lost)} references have no loss, since three workers died of each: {', '.join(lost[:20])}"
            raise ClusterError(what, "see the workers' logs; leave these prompts out", code="cluster.lost")

    def _units(self, ids: Sequence[Sequence[str]]) -> list[Unit]:
        request = next(_requests)
        return [
            Unit(
                key=f"{self.kind}/{self.point.key}/{request}/{n}",
                kind=self.kind,
                group=self.point.folder,
                prompts=(*each,),
            )
            for n, each in enumerate(ids)
        ]

    def _shards(self, prompts: Sequence[Prompt], params: SamplingParams, done: Collection[str]) -> list[list[Sample]]:
        """Shards of what is left, in its order: the engine of a worker makes its own batches of each."""
        samples = [(prompts[i], sample) for i, sample in sample_indices(prompts, params)]
        left = [(prompt, sample) for prompt, sample in samples if sample_key(prompt.id, sample) not in done]
        return [[left[i] for i in shard] for shard in shards(len(left), self.runner.batch_size or UNIT)]


class ClusterSweep:
    """A sweep whose models are on the workers of a cluster. Implements `Sweep`."""

    concurrent = True
    stays_loaded = True

    def __init__(self, spec: SweepSpec, submit: Submit) -> None:
        self._spec, self._submit = spec, submit
        self._plans: dict[tuple[int, bool, bool], Batches | None] = {}

    def at(self, point: MergePoint) -> ClusterEngine:
        """See `Sweep.at`."""
        runner = fixed(self._spec.runner)
        return ClusterEngine(
            submit=self._submit,
            kind="models",
            point=point,
            runner=runner,
            system=self._spec.system,
            plan=self._plan(point, runner),
        )

    def close(self) -> None:
        """See `Sweep.close`; the workers end with the run."""

    def _plan(self, point: MergePoint, runner: Runner) -> Batches | None:
        """How the model at a point is asked: with the tokenizer of its folder, or of the merge."""
        if runner.engine != "transformers":
            return None
        own = self._spec.at(point)
        folder = own.folder_of(point)
        key = (id(own.pair), point.is_base, folder is None)
        if key not in self._plans:
            if folder is not None:
                opened = open_folder(folder)
                self._plans[key] = Batches(opened.tokenizer, opened.base, runner, own.system)
            else:
                with tempfile.TemporaryDirectory() as merged:
                    OpenMerge(own.pair, method=own.method, **own.options).write_side_files(Path(merged))
                    self._plans[key] = Batches(Path(merged), Path(merged), runner, own.system)
        return self._plans[key]


def judge_engine(submit: Submit, kind: str, folder: Path, runner: Runner, point: MergePoint) -> ClusterEngine:
    """The engine of a judge on the workers of a cluster."""
    runner, plan = fixed(runner), None
    if runner.engine == "transformers":
        opened = open_folder(folder)
        plan = Batches(opened.tokenizer, opened.base, runner, None)
    return ClusterEngine(submit=submit, kind=kind, point=point, runner=runner, system=None, plan=plan)
