"""Finished runs below a folder, and which of them measure the same thing by the same means."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.errors import DataError
from mooring.jsonio import EDITED
from mooring.ledger import LEDGER, read_ledger
from mooring.reporting.results import Results
from mooring.reporting.run_folder import load_run
from mooring.text import one_line

DEPTH = 3
"""How deep below the folder of runs a run may lie."""
NO_TASK = "no task"

_NOT_MEASURED = {"name", "out", "report", "seed", "base", "tuned", "merge"}
"""Sections of a recipe that do not say how a run measures: names, or what a table compares."""
_HARDWARE = {
    *("batch_size", "device", "base_url", "key_env", "concurrency", "requests_per_minute", "tensor_parallel"),
    *("price_in", "price_out", "save_steps", "drafts"),
}
"""Settings that decide how fast an answer comes, not what it is."""
ASKED = "harmful prompts tested"
_SAFETY = re.compile(rf"{ASKED}|system|generate\.(?!task\.).*|score\.(safety|validation|limit|judges\b.*)")
"""What ASR depends on, whatever the task is."""
_SAFETY_SET = "safety"


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        name: Its folder, as it lies below the folder of runs.
        results: What it found.
        base: The aligned model, by its name.
        task: What the tuned model was tuned for.
        method: The merging rule, with the settings that it was given.
        seed: The tuned model's seed.
        draw: The seed by which its prompts were drawn and halved.
        settings: How it measures, by place in the recipe: runs compare where these are equal.
    """

    name: str
    results: Results
    base: str
    task: str
    method: str
    seed: int
    draw: int
    settings: Mapping[str, Any]

    @property
    def cell(self) -> tuple[str, str, str]:
        """What it is one of several seeds of."""
        return self.base, self.task, self.method

    @property
    def tuned(self) -> str:
        """What tells the tuned model from others: its digest, or the run's name where none is known."""
        return self.results.models.get("tuned", {}).get("digest") or self.name


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Every finished run in a folder of run folders, and a line about each that cannot be read.

    Raises:
        DataError: There is no such folder, or no run that can be read in it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: there is no such folder", "name a folder that holds run folders", code="data.not_found"
        )
    runs: list[Run] = []
    lines: list[str] = []
    for path in _run_folders(folder, DEPTH):
        name = one_line("." if path == folder else str(path.relative_to(folder)))
        try:
            runs.append(_read(path, name))
        except DataError as error:
            what = error.message.removeprefix(f"{path}: ").removeprefix(f"{path}/").replace(str(path), name)
            hint = error.hint.replace(str(path), f"{folder.resolve().name}/{name}")
            lines.append(one_line(f"{name}: left out: {DataError(what, hint, code=error.code)}"))
    if not runs:
        why = f" ({lines[0]})" if lines else ""
        raise DataError(
            f"{folder}: holds no finished run{why}", "name a folder with runs in it: runs/", code="data.no_finished_run"
        )
    return runs, lines


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / LEDGER).is_file() or (folder / "report" / "results.json").is_file():
        yield folder
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _run_folders(child, depth - 1)


def _read(folder: Path, name: str) -> Run:
    results = load_run(folder)
    if (folder / LEDGER).is_file() and not read_ledger(folder).finished:
        raise DataError("it was begun again since its report was written", "let it finish", code="data.unfinished_run")
    return as_run(name, results)


def as_run(name: str, results: Results) -> Run:
    """What a run's results are results of.

    Raises:
        DataError: Their recipe is not one.
    """
    recipe = results.recipe
    try:
        merge = dict(recipe["merge"])
        tune = recipe.get("tune") or {}
        seed = tune.get("seed")
        return Run(
            name=name,
            results=results,
            base=short(str(recipe["base"])) + (", aligned" if recipe.get("align") else ""),
            task=_task(recipe),
            method=_method(merge),
            seed=int(recipe["seed"] if seed is None else seed),
            draw=int(recipe["seed"]),
            settings=dict(_settings(recipe, results)),
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError("results.json: its recipe is not one", EDITED, code="data.edited_results") from None


def short(ref: str) -> str:
    """A model or a set by its name, in one line: of a path, which says nothing to a reader, the last part."""
    return one_line(Path(ref).name if ref.startswith((".", "~", "/")) else ref)


def _task(recipe: Mapping[str, Any]) -> str:
    score = recipe["score"]
    lm_eval = ", ".join(score.get("lm_eval") or ())
    named = recipe.get("task") or score.get("task") or lm_eval
    return short(str(named)) if named else NO_TASK


def _method(merge: dict[str, Any]) -> str:
    given = {key: value for key, value in merge.items() if key not in ("method", "lambdas") and value is not None}
    said = ", ".join(f"{key} {value}" for key, value in given.items())
    return one_line(str(merge["method"]) + (f" ({said})" if said else ""))


def _settings(recipe: Mapping[str, Any], results: Results) -> Iterator[tuple[str, Any]]:
    for section, values in recipe.items():
        if section == "merge":
            yield "merge.lambdas", values.get("lambdas")
        elif section in _NOT_MEASURED:
            continue
        elif isinstance(values, Mapping):
            unused = {"budget"} if section == "select" and values.get("search") != "modules" else set()
            for key, value in values.items():
                if (
                    key not in unused
                    and key not in _HARDWARE
                    and key != "judges"
                    and (section, key) != ("tune", "seed")
                ):
                    if isinstance(value, Mapping):
                        yield from ((f"{section}.{key}.{name}", _plain(each)) for name, each in value.items())
                    else:
                        yield f"{section}.{key}", _plain(value)
        else:
            yield section, _plain(values)
    yield "score.judges", list(results.judges)
    asr = results.score("base", "asr")
    yield ASKED, asr.n if asr else None


def _plain(value: Any) -> Any:
    """One set or a list of one: the same."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


def differences(own: Run, other: Run, *, safety_only: bool = False, drawn: bool = False) -> list[str]:
    """Where a run measures otherwise than another, a phrase each: `score.limit 50, not 100`.

    Args:
        own: The one that is spoken of.
        other: The one that it stands beside.
        safety_only: Only what ASR depends on: the two are of different tasks.
        drawn: Whether they may have been asked other prompts of the same sets, drawn by another seed.
    """
    found = []
    for place in dict.fromkeys([*own.settings, *other.settings]):
        ours, theirs = own.settings.get(place), other.settings.get(place)
        if ours == theirs or (safety_only and not _matters(place, own, other)):
            continue
        if _say(ours) != _say(theirs):
            found.append(f"{place} {_say(ours)}, not {_say(theirs)}")
        elif not place.startswith("score."):  # of what is asked, the prompts themselves are compared
            found.append(f"{place} {_say(ours)} in another place")
    others = other_prompts(own, other)
    if safety_only:
        others = [place for place in others if place.startswith(_SAFETY_SET)]
    if others and not (drawn and own.draw != other.draw):
        found.append(f"other prompts ({', '.join(others)})")
    return found


def other_prompts(own: Run, other: Run) -> list[str]:
    """The sets that both were asked, but with other prompts in them (two files of one name, another draw)."""
    return [
        f"{name} {split}"
        for split, sets in own.results.prompts.items()
        for name, digest in sets.items()
        if other.results.prompts.get(split, {}).get(name, digest) != digest
    ]


def _matters(place: str, own: Run, other: Run) -> bool:
    override = place.replace("generate.", "generate.safety.", 1)
    if override != place and all(run.settings.get(override) is not None for run in (own, other)):
        return False  # ASR depends on the override alone
    return bool(_SAFETY.fullmatch(place))


def _say(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(_say, value)) or "none"
    if isinstance(value, str):
        return short(value) or "''"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
