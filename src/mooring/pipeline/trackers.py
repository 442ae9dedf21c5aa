"""Experiment trackers, through their own clients: the numbers of a run as they come, and at its end the figure.

No text of a prompt or an answer is sent: numbers, the recipe, the verdict, the figure and the model card.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from mooring.errors import MissingExtraError, UserError
from mooring.events import Event, OnEvent, ignore
from mooring.pipeline.run import Outcome, Run
from mooring.pipeline.steps import Score
from mooring.printable import shorten
from mooring.records import Trial, read_record

Kind = Literal["wandb", "mlflow", "tensorboard"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Tracker(Protocol):
    """What every tracker takes."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        ...

    def end(self, facts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        """What a run ended with, and files to keep."""
        ...

    def close(self) -> None:
        """Finish: no further calls follow."""
        ...


@contextlib.contextmanager
def tracking(run: Run, kind: Kind | None, on_event: OnEvent | None) -> Iterator[tuple[OnEvent | None, Any]]:
    """An `on_event` that also reports to a tracker, and a function that takes the outcome; closed at the end.

    Losses are logged by training step. Scores are logged at λ in percent, so that a tracker draws them over λ. A
    tracker that fails later, such as one whose server is gone, is dropped with a warning, and the run continues.

    Raises:
        UserError: The tracker is unknown (`usage.unknown_tracker`), or does not start (`usage.tracker_failed`).
        MissingExtraError: Its package is not installed (`extra.tracker`).
    """
    if kind is None:
        yield on_event, lambda outcome: None
        return
    tell = on_event or ignore
    tracker: Tracker | None = _open(kind, run)

    def attempt(act: Callable[[Tracker], None]) -> None:
        nonlocal tracker
        if tracker is not None:
            try:
                act(tracker)
            except Exception as error:  # of three libraries and their servers
                tracker = None
                message = f"{kind} failed, and receives no more of this run ({_reason(error)})"
                tell(Event(step="track", kind="warning", message=message))

    def relay(event: Event) -> None:
        tell(event)
        attempt(lambda tracker: _log(tracker, run, event))

    try:
        yield relay, lambda outcome: attempt(lambda tracker: _end(tracker, run, outcome))
    finally:
        attempt(lambda tracker: tracker.close())


def _log(tracker: Tracker, run: Run, event: Event) -> None:
    """Pass on the numbers of an event, if it has any."""
    if event.kind == "progress" and event.metrics:
        tracker.log({f"{event.step}/{name}": value for name, value in event.metrics.items()}, event.done)
    elif event.kind in ("finished", "cached") and (trial := _trial(run, event.step)) is not None:
        scores = {f"{trial.split}/{n}": s.value for n, s in trial.scores.items() if s.value is not None}
        tracker.log(scores, round(100 * trial.point.lam))


def _reason(error: Exception) -> str:
    """An error of a library in a few words."""
    return f"{type(error).__name__}: {shorten(str(error), 200)}"


def _trial(run: Run, step: str) -> Trial | None:
    """The scores that a step wrote, if it is one that does."""
    known = run.plan.steps.get(step)
    if known is None or not isinstance(known.work, Score) or not known.outputs or not known.outputs[0].is_file():
        return None
    return read_record(known.outputs[0], Trial)


def _end(tracker: Tracker, run: Run, outcome: Outcome) -> None:
    facts = {"recipe": run.recipe.dump()}
    if outcome.verdict is not None and outcome.choice is not None:
        facts |= {"verdict": outcome.verdict.words, "sentence": outcome.verdict.sentence}
        facts |= {"chosen": outcome.choice.point.label, "reason": outcome.choice.reason}
    files = {"tradeoff": outcome.report / "tradeoff.png", "model-card": outcome.report / "model-card.md"}
    tracker.end(facts, {name: path for name, path in files.items() if path.is_file()})


def _open(kind: Kind, run: Run) -> Tracker:
    trackers: dict[str, Any] = {"wandb": _Wandb, "mlflow": _MLflow, "tensorboard": _TensorBoard}
    if kind not in trackers:
        raise UserError(f"tracker {kind!r} is unknown", f"known: {', '.join(KINDS)}", code="usage.unknown_tracker")
    try:
        tracker: Tracker = trackers[kind](run)
    except ImportError:
        raise MissingExtraError(kind, f"pip install 'mooring[{kind}]'", code="extra.tracker") from None
    except Exception as error:
        what = f"--track {kind}: it does not start ({_reason(error)})"
        raise UserError(what, "correct its settings, or leave out --track", code="usage.tracker_failed") from None
    return tracker


class _TensorBoard:
    """Event files beside the run folder, in `RUN-tracking`; `tensorboard --logdir RUN-tracking` shows them."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(_beside(run)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def end(self, facts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        import matplotlib.image
        import numpy as np

        for name, text in facts.items():
            self._writer.add_text(name, f"```\n{text}\n```" if "\n" in text else text)
        if (figure := files.get("tradeoff")) is not None:
            pixels = np.asarray(matplotlib.image.imread(figure))
            self._writer.add_image("tradeoff", pixels[..., :3], dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, in the mode of `WANDB_MODE`; `offline` writes to `RUN-tracking`."""

    def __init__(self, run: Run) -> None:
        import wandb

        folder = _beside(run)
        folder.mkdir(parents=True, exist_ok=True)
        config = run.recipe.model_dump(mode="json")
        self._wandb, self._run = (
            wandb,
            wandb.init(project="mooring", name=run.recipe.name, dir=str(folder), config=config),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        lam = any(name.startswith(("validation/", "test/")) for name in values)
        self._run.log({**values, ("λ in percent" if lam else "training step"): step})

    def end(self, facts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        self._run.summary.update({name: text for name, text in facts.items() if name != "recipe"})
        artifact = self._wandb.Artifact("report", type="report")
        for name, path in files.items():
            artifact.add_file(str(path), name=f"{name}{path.suffix}")
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, at `MLFLOW_TRACKING_URI`."""

    def __init__(self, run: Run) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("mooring")
        mlflow.start_run(run_name=run.recipe.name)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics({_plain(name): value for name, value in values.items()}, step=step)

    def end(self, facts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        for name, text in facts.items():
            self._mlflow.log_text(text, f"{name}.txt")
        for path in files.values():
            self._mlflow.log_artifact(str(path))

    def close(self) -> None:
        self._mlflow.end_run()


def _beside(run: Run) -> Path:
    """The folder of a tracker that writes files: not in the run folder, which a run makes."""
    folder = run.recipe.folder.resolve()
    return folder.parent / f"{folder.name}-tracking"


def _plain(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", name)
