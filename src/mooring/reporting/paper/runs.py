"""Finished runs below a folder: what each measured, what differs between two, and which are seeds of one."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.config import NO_OPTION_OF_THE_METHOD
from mooring.errors import DataError
from mooring.jsonio import EDITED
from mooring.ledger import LEDGER, read_ledger
from mooring.merge_methods import METHODS
from mooring.merge_point import Role
from mooring.printable import one_line
from mooring.records import Score
from mooring.reporting.comparison.records import MethodComparison, is_comparison, load_comparison
from mooring.reporting.results import Results, load_run
from mooring.text import MISSING, without_folders

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
    """A finished run, with its path below the folder of runs.

    `seed` is the tuned model's, `draw` the seed by which its prompts were drawn and halved, `mask` that of the method's
    random mask, if it draws one. `settings` are how it measures, by place in the recipe: runs compare if these are
    equal. `has_lam` is whether λ is chosen for its method, and `label` what tells it from others in a comparison.
    """

    name: str
    results: Results
    base: str
    task: str
    method: str
    seed: int
    draw: int
    settings: Mapping[str, Any]
    mask: int | None = None
    has_lam: bool = True
    label: str = ""

    @property
    def merged(self) -> tuple[str, int | None]:
        """What tells the merged models at one λ from others of the same method: the tuned model, and the mask."""
        return self.tuned, self.mask

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
            runs += _read(path, name)
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


def _read(folder: Path, name: str) -> list[Run]:
    """The run in a folder, or each series of a comparison."""
    comparison = load_comparison(folder) if is_comparison(folder / "report") else None
    results = None if comparison else load_run(folder)
    if (folder / LEDGER).is_file() and not read_ledger(folder).finished:
        raise DataError(
            "it was started again since its report was written", "let it finish", code="data.unfinished_run"
        )
    return runs_of(comparison, name) if comparison else [as_run(name, results)] if results else []


def runs_of(found: MethodComparison, name: str = "") -> list[Run]:
    """Each series of a comparison, as a run of its own."""
    start = f"{name}: " if name else ""
    runs = []
    for each in found.series:
        tuned = each.tuned or " + ".join(filter(None, (model.name for model in found.tuned)))
        mask = "" if each.seed is None else f"mask {each.seed}"
        label = ", ".join(filter(None, (tuned, mask)))
        runs.append(as_run(f"{start}{each.series.label}", found.results_of(each), label))
    return runs


def as_run(name: str, results: Results, label: str = "") -> Run:
    """What a run's results are results of; `label` is what tells it from others in a comparison.

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
            base=without_folders(str(recipe["base"])) + (", aligned" if recipe.get("align") else ""),
            task=_task(recipe),
            method=_method(merge),
            seed=int(recipe["seed"] if seed is None else seed),
            draw=int(recipe["seed"]),
            settings=dict(_settings(recipe, results)),
            mask=_mask(recipe),
            has_lam=METHODS[str(merge["method"])].has_lam,
            label=label,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError("results.json: its recipe is not one", EDITED, code="data.edited_results") from None


def _task(recipe: Mapping[str, Any]) -> str:
    score = recipe["score"]
    lm_eval = ", ".join(score.get("lm_eval") or ())
    named = recipe.get("task") or score.get("task") or lm_eval
    return without_folders(str(named)) if named else NO_TASK


def _method(merge: dict[str, Any]) -> str:
    given = {key: value for key, value in merge.items() if key not in NO_OPTION_OF_THE_METHOD and value is not None}
    options = ", ".join(f"{key} {value}" for key, value in given.items())
    return one_line(str(merge["method"]) + (f" ({options})" if options else ""))


def _mask(recipe: Mapping[str, Any]) -> int | None:
    """The seed of the random mask; None if the method draws none."""
    merge = recipe["merge"]
    if not METHODS[str(merge["method"])].random:
        return None
    return int((merge.get("seeds") or [recipe["seed"]])[0])


def _settings(recipe: Mapping[str, Any], results: Results) -> Iterator[tuple[str, Any]]:
    for section, values in recipe.items():
        if section == "merge":
            yield "merge.lambdas", values.get("lambdas")
        elif section in _NOT_MEASURED:
            continue
        elif isinstance(values, Mapping):
            left_out = {"score.judges", "tune.seed", *(f"{section}.{key}" for key in _HARDWARE)}
            if values.get("search") != "modules":
                left_out.add("select.budget")
            for place, value in ((f"{section}.{key}", value) for key, value in values.items()):
                if place in left_out:
                    continue
                if isinstance(value, Mapping):
                    yield from ((f"{place}.{name}", _as_list(each)) for name, each in value.items())
                else:
                    yield place, _as_list(value)
        else:
            yield section, _as_list(values)
    yield "score.judges", list(results.judges)
    asr = results.score("base", "asr")
    yield ASKED, asr.n if asr else None


def _as_list(value: Any) -> Any:
    """One set and a list of one are the same."""
    return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value


# --- What differs between two runs ---


def differences(own: Run, other: Run, *, safety_only: bool = False, drawn: bool = False) -> list[str]:
    """How a run measures differently from another, a phrase each: `score.limit 50, not 100`.

    With `safety_only`, only what ASR depends on, for runs of different tasks; with `drawn`, they may have other prompts
    of the same sets, drawn by another seed.
    """
    found = []
    for place in dict.fromkeys([*own.settings, *other.settings]):
        ours, theirs = own.settings.get(place), other.settings.get(place)
        if ours == theirs or (safety_only and not _matters(place, own, other)):
            continue
        ours, theirs = _words(ours), _words(theirs)
        if ours != theirs:
            found.append(f"{place} {ours}, not {theirs}")
        elif not place.startswith("score."):  # of sets of prompts, the prompts themselves are compared
            found.append(f"{place} {ours} in another place")
    others = other_prompts(own, other)
    if safety_only:
        others = [place for place in others if place.startswith(_SAFETY_SET)]
    if others and not (drawn and own.draw != other.draw):
        found.append(f"other prompts ({', '.join(others)})")
    return found


def other_prompts(own: Run, other: Run) -> list[str]:
    """The sets that both have, but with other prompts in them (two files of one name, another draw)."""
    return [
        f"{name} {split}"
        for split, sets in own.results.prompts.items()
        for name, digest in sets.items()
        if other.results.prompts.get(split, {}).get(name, digest) != digest
    ]


def _matters(place: str, own: Run, other: Run) -> bool:
    """Whether ASR depends on a setting."""
    override = place.replace("generate.", "generate.safety.", 1)
    if override != place and all(run.settings.get(override) is not None for run in (own, other)):
        return False  # ASR depends on the override alone
    return bool(_SAFETY.fullmatch(place))


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(_words, value)) or "none"
    if isinstance(value, str):
        return without_folders(value) or "''"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _first_three(phrases: Sequence[str]) -> str:
    shown = "; ".join(phrases[:3])
    return f"{shown}; and {len(phrases) - 3} more" if len(phrases) > 3 else shown


# --- Several seeds of one base, task and method ---


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The runs of one base, task and method, one or more, by seed, all measured alike."""

    runs: Sequence[Run]

    @property
    def first(self) -> Run:
        """The run that represents the settings of all."""
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """The seeds, or how many models have the same one (several tuned models that were made elsewhere).

        Of a comparison, the names of the tuned models and the masks.
        """
        if all(run.label for run in self.runs):
            return ", ".join(run.label for run in self.runs)
        found = sorted({run.seed for run in self.runs})
        masks = [run.mask for run in self.runs]
        if len({run.tuned for run in self.runs}) == 1 < len(set(masks)):
            return f"masks {', '.join(map(str, masks))}"
        return ", ".join(map(str, found)) if len(found) == len(self.runs) else f"{len(self.runs)} models"

    @property
    def lam(self) -> str:
        """The λ that were chosen, in the order of the seeds; one if all are equal; none if the method has no λ."""
        if not self.first.has_lam:
            return MISSING
        points = [run.results.choice.point for run in self.runs]
        return ", ".join(dict.fromkeys(f"{p.single.key}{' by module' if p.by_module else ''}" for p in points))

    def scores(self, model: Role, name: str) -> list[Score]:
        """A score of every seed on the test split; those that were not measured are left out."""
        found = (run.results.score(model, name) for run in self.runs)
        return [score for score in found if score is not None]


def why_not_comparable(group: Group, beside: Group, *, safety_only: bool = False) -> str:
    """Why a row of a table does not compare with another, in one line; empty if it does. `safety_only`: of ASR."""
    found = differences(group.first, beside.first, safety_only=safety_only)
    of_all = not (group.first.has_lam and beside.first.has_lam)  # such as Model Stock, which merges all tuned models
    same_models = of_all or {run.tuned for run in group.runs} == {run.tuned for run in beside.runs}
    if not safety_only and not same_models and group.seeds != beside.seeds:
        found.append(f"seeds {group.seeds}, not {beside.seeds}")
    return f"does not compare with {beside.first.name}: {_first_three(found)}" if found else ""


def grouped(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Sort runs into groups by base, task and method; also returns notes.

    Of each group, the runs that were measured in the same way are kept, the larger part if there are two; each of the
    others gets a note. So does a run of a tuned model, and of a mask if the method draws one, that another run has
    measured already, and seeds that drew their prompts separately, which are kept.
    """
    notes: list[str] = []
    members: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.base, run.task, run.method, run.seed, run.mask or 0, run.name)):
        members.setdefault((run.base, run.task, run.method), []).append(run)
    groups = []
    for found in members.values():
        alike = _largest_part(found)
        for run in found:
            if run not in alike:
                reasons = _first_three(differences(run, alike[0], drawn=True))
                notes.append(f"{run.name}: left out, since it does not compare with {alike[0].name}: {reasons}")
        known: dict[tuple[str, int | None], Run] = {}
        for run in alike:
            if (same := known.setdefault(run.merged, run)) is not run:
                what = f"{same.name} measured the same tuned model by the same rule"
                notes.append(f"{run.name}: left out, since {what}")
        group = Group(list(known.values()))
        groups.append(group)
        for run in group.runs[1:]:
            if others := other_prompts(run, group.first):
                what = f"drew other prompts than {group.first.name} by its seed ({', '.join(others)})"
                notes.append(f"{run.name}: {what}: mean ± standard deviation over seeds include the draw of prompts")
                break
    return groups, notes


def _largest_part(runs: Sequence[Run]) -> list[Run]:
    """Of runs that measured in several ways, those of the most common way."""
    parts: list[list[Run]] = []
    for run in runs:
        part = next((part for part in parts if not differences(run, part[0], drawn=True)), None)
        if part is None:
            parts.append([run])
        else:
            part.append(run)
    return max(parts, key=len)  # the first of equal ones
