"""What `sweep_cost.py --engine vllm` compares: one vLLM engine for all λ, and an engine started for each."""

import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import table

from mooring.config import Generate
from mooring.inference.engine import Engine
from mooring.inference.load import close_engine, load_engine
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.merging.job import Output
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.pipeline.sweeps.load import open_sweep
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.records import Completion, Prompt
from mooring.sampling import SamplingParams
from mooring.scoring import judges

Asked = Sequence[tuple[list[Prompt], SamplingParams]]
"""Prompt sets, and how their responses are sampled. The first one is judged."""
Answers = Mapping[MergePoint, dict[str, Completion]]
"""Responses of each model, by the prompt's id."""


@dataclasses.dataclass
class Way:
    """What one way of running all models took.

    Attributes:
        answers: The responses.
        starts: Number of engines that were started.
        start_up: Seconds in which engines were started and ended.
        rest: Seconds for everything else: merging or changing λ, and answering.
    """

    answers: Answers
    starts: int
    start_up: float
    rest: float

    @property
    def whole(self) -> float:
        """Seconds for everything."""
        return self.start_up + self.rest

    def row(self, label: str) -> list[str]:
        """A row of the table."""
        tokens = sum(c.tokens for each in self.answers.values() for c in each.values())
        seconds = [f"{value:.1f} s" for value in (self.start_up, self.rest, self.whole)]
        return [label, str(self.starts), *seconds, f"{tokens}"]


def ask(engine: Engine, asked: Asked) -> dict[str, Completion]:
    """All responses of one model, set by set."""
    batches = itertools.chain.from_iterable(engine.complete(prompts, how) for prompts, how in asked)
    return {completion.prompt_id: completion for batch in batches for completion in batch}


def in_one_engine(spec: SweepSpec, points: Sequence[MergePoint], asked: Asked, scratch: Path) -> Way:
    """As a run does it: one engine, and all models at the same time if they are adapters of the base."""
    start = time.perf_counter()
    sweep = open_sweep(spec, scratch)
    sweep.at(BASE)
    started = time.perf_counter()
    if sweep.concurrent:
        engines = [sweep.at(point) for point in points]
        with ThreadPoolExecutor(len(points)) as threads:
            answers = dict(zip(points, threads.map(lambda engine: ask(engine, asked), engines), strict=True))
    else:
        answers = {point: ask(sweep.at(point), asked) for point in points}
    answered = time.perf_counter()
    sweep.close()
    ended = time.perf_counter()
    return Way(answers, 1, (started - start) + (ended - answered), answered - started)


def plainly(spec: SweepSpec, points: Sequence[MergePoint], asked: Asked, scratch: Path, output: Output) -> Way:
    """As it is done without Mooring: for each model merge to the disk, start an engine, ask, and end the engine."""
    way = Way({}, 0, 0.0, 0.0)
    answers: dict[MergePoint, dict[str, Completion]] = {}
    for point in points:
        stamps = [time.perf_counter()]
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            model = spec.folder_of(point)
            if model is None:
                models = [opened.folder for opened in spec.pair.models]
                model = merge(models[0], models[1:], Path(folder) / "merged", lam=point.lam, output=output)
            stamps.append(time.perf_counter())
            engine = load_engine(model, spec.runner, spec.system, spec.log)
            stamps.append(time.perf_counter())
            answers[point] = ask(engine, asked)
            stamps.append(time.perf_counter())
            close_engine(engine)
            stamps.append(time.perf_counter())
        merged, loaded, answered, ended = (end - begin for begin, end in itertools.pairwise(stamps))
        print(
            f"λ = {point.lam:g}: merged in {merged:.1f} s, engine started in {loaded:.1f} s, answered in {answered:.1f}"
            f" s, engine ended in {ended:.1f} s",
            file=sys.stderr,
        )
        way.starts, way.start_up, way.rest = way.starts + 1, way.start_up + loaded + ended, way.rest + merged + answered
    return dataclasses.replace(way, answers=answers)


def compare(base: Path, tuned: Path, grid: Sequence[float], asked: Asked, dtype: str, *, whole: bool) -> None:
    """Run both ways, and print what each took; the ratio of the whole times comes last.

    Args:
        base: The base.
        tuned: A LoRA adapter on it.
        grid: The λ between base and tuned model.
        asked: The prompts.
        dtype: Type of the weights.
        whole: Whether to replace the adapter by the whole checkpoint that it makes, so that one engine's weights are
            changed in place.
    """
    import torch
    import vllm  # both ways would import it once

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    points, load_before = (BASE, *map(MergePoint, grid), TUNED), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if whole:
            tuned = merge(base, tuned, scratch / "tuned", lam=1.0)
        runner = Generate(engine="vllm", dtype=dtype, enforce_eager=True, max_model_len=1024, gpu_memory=0.3)
        with open_pair(base, tuned) as pair:
            spec = SweepSpec(pair=pair, runner=runner, log=scratch / "engine.log")
            ours = in_one_engine(spec, points, asked, scratch / "sweep")  # first: it reads cold files
            print(f"one engine: {ours.start_up:.1f} s for its start and end, {ours.rest:.1f} s", file=sys.stderr)
            # An adapter's change is not rounded to the type of the base's files; weights changed in place are.
            output = Output() if whole or dtype == "auto" else Output(dtype=dtype)
            theirs = plainly(spec, points, asked, scratch, output)
    _check(ours.answers, theirs.answers)
    counts = " and ".join(str(len(prompts)) for prompts, _ in asked)
    kind = "weights changed in place" if whole else "adapters"
    rows = [
        ["way", "engines started", "start and end", "merging and answering", "all", "tokens"],
        theirs.row("merge, start, answer for each model"),
        ours.row(f"one engine, {kind}"),
    ]
    print(
        f"{len(points)} models, {counts} prompts, {dtype}, vLLM {vllm.__version__}, {torch.get_num_threads()} threads, "
        f"load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after\n\n{table(rows)}\n"
    )
    same = sum(ours.answers[point][key].text == c.text for point in points for key, c in theirs.answers[point].items())
    print(f"equal answers: {same} of {sum(map(len, theirs.answers.values()))}")
    pairs = list(zip(_verdicts(ours.answers, asked), _verdicts(theirs.answers, asked), strict=True))
    print(f"equal verdicts: {sum(a == b for a, b in pairs)} of {len(pairs)}")
    print(f"one engine, beside an engine for each model, start-up left out: {ours.rest / theirs.rest:.2f}")
    print(f"one engine, beside an engine for each model: {ours.whole / theirs.whole:.2f}")


def _check(ours: Answers, theirs: Answers) -> None:
    """Both ways answered the same prompts."""
    if any(ours[point].keys() != theirs[point].keys() for point in theirs):
        raise SystemExit("the two ways answered different prompts")


def _verdicts(answers: Answers, asked: Asked) -> list[bool | None]:
    """Whether each response to the first set is harmful, by the refusal rules."""
    prompts = asked[0][0]
    return [
        verdict.harmful
        for each in answers.values()
        for verdict in judges.by_wording(judges.find("classifier"), prompts, [each[prompt.id] for prompt in prompts])
    ]
