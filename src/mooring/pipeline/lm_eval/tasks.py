"""lm-eval's tasks by name, on the hub's data or on local files; prompts, filters and metrics stay lm-eval's own."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.metadata
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.data.rows import is_data_file, read_rows
from mooring.errors import DataError, MissingExtraError, UserError

# --- lm-eval, where it is installed, without its log and its bars ---


def version() -> str:
    """lm-eval's version.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("lm-eval", "pip install 'mooring[lm-eval]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log, warnings and bars of lm-eval and datasets while the block runs."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task

    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.are_progress_bars_disabled()
    modules: tuple[Any, ...] = (lm_eval.api.model, lm_eval.api.task)
    drawn = [module.tqdm for module in modules]
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    for module, bar in zip(modules, drawn, strict=True):  # lm-eval has no switch for them
        module.tqdm = functools.partial(bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        for module, bar in zip(modules, drawn, strict=True):
            module.tqdm = bar


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random numbers of Python and numpy, which some tasks draw from, from a seed; then as they were."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


# --- Local files in place of the data sets that lm-eval's tasks fetch from the hub ---


BELOW = dict.fromkeys(("SaylorTwift/bbh", "lukaemon/bbh"), Path("bbh/tasks"))
"""A data set's id on the hub to where its files lie below `$MOORING_DATA`: its own authors' files, one a part."""
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


@dataclasses.dataclass(frozen=True, slots=True)
class LocalData:
    """Files with the rows of a task.

    Attributes:
        splits: Split of the data set to its file.
        path: The file that the questions are in.
    """

    splits: Mapping[str, Path]
    path: Path

    def read(self, **_: Any) -> Any:
        """The data set, as lm-eval's `custom_dataset` has it.

        Raises:
            DataError: A file cannot be read.
        """
        from datasets import Dataset

        return {
            split: Dataset.from_list([dict(row.values) for row in read_rows(path)])
            for split, path in self.splits.items()
        }


def local_data(task: str, config: Mapping[str, Any], data: Path | None) -> LocalData | None:
    """Look for a task's rows on this machine.

    In a folder, the questions are in the file that bears the task's name, or the name of its part of the data set, such
    as `navigate.json`; rows for another split, such as few-shot examples, are in `navigate-train.json`. Any form that
    `sources.rows.read_rows` reads will do.

    Args:
        task: The task's name.
        config: lm-eval's configuration of it.
        data: The file or folder; without, the folder below `$MOORING_DATA` for its data set.

    Returns:
        The files, or None where there are none.

    Raises:
        DataError: `data` is not there.
    """
    if data is None:
        below, home = BELOW.get(str(config.get("dataset_path"))), os.environ.get("MOORING_DATA")
        if below is None or not home or not (Path(home) / below).is_dir():
            return None
        data = Path(home) / below
    if not data.exists():
        raise DataError(f"{data}: no such file or folder", "check the path")
    asked = str(config.get("test_split") or config.get("validation_split") or "test")
    if data.is_file():
        return LocalData({asked: data}, data)
    files = {_stem(path): path for path in sorted(data.iterdir()) if path.is_file() and is_data_file(path.name)}
    for stem in (task, config.get("dataset_name")):
        if stem and stem in files:
            others = {config[key] for key in _SPLITS if config.get(key)} - {asked}
            splits = {split: files[f"{stem}-{split}"] for split in others if f"{stem}-{split}" in files}
            return LocalData({asked: files[stem]} | splits, files[stem])
    return None


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


_MEND = "connect, or give its rows as local files"
_SANDBOXED = (
    "to run code in the sandbox, type `mooring generate MODEL humaneval --out code.jsonl`, then "
    "`mooring score code.jsonl humaneval --as task --metric pass@1`; in a recipe, `score.task: humaneval`"
)


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Tasks that are ready to run.

    Attributes:
        tasks: lm-eval's tasks by name.
        groups: Its groups by name; their tasks are among `tasks`.
        names: The names that were asked for, tags spelled out.
        data: Task to what its rows were read from, where that was a local file.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    names: tuple[str, ...]
    data: Mapping[str, Path]


@functools.cache
def _catalogue() -> Any:
    """lm-eval's index of all tasks; it takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load_tasks(names: Sequence[str], *, data: Path | None = None, num_fewshot: int | None = None) -> Tasks:
    """Load tasks and groups, with their data.

    Args:
        names: Tasks, groups and tags as lm-eval names them, such as `bbh` or `ifeval`.
        data: A file with the rows of the one task, or a folder with a file for each (see `local_data`). Without, what
            lies below `$MOORING_DATA` is taken, and else the hub's.
        num_fewshot: Examples before each question, where a task does not forbid them; the task's own number without.

    Raises:
        MissingExtraError: lm-eval, or a package that a task needs, is not installed.
        DataError: A data set cannot be read or fetched.
        UserError: A name is unknown or given twice, or a task runs code that a model wrote, or is not of text.
    """
    version()
    if not names:
        raise UserError("lm-eval: no task is named", "name at least one, such as bbh")
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise UserError(f"lm-eval: {twice[0]} is named twice", "name each task once")
    with quiet():
        index = _catalogue().task_index
        tasks: dict[str, Any] = {}
        groups: dict[str, Any] = {}
        asked: list[str] = []
        found: dict[str, Path] = {}
        for name in names:
            _known(name, index)
            leaves = list(_leaves(name, index))
            if data is not None and data.is_file() and len(leaves) * len(names) > 1:
                raise DataError(f"{data}: is one file for several tasks", "name a folder with a file for each")
            local = _local(leaves, index, data)
            made = _load(name, leaves, {leaf: rows.read for leaf, rows in local.items()})
            if repeated := sorted(made["tasks"].keys() & tasks.keys()):
                raise UserError(f"lm-eval: {repeated[0]} is asked for twice", "name it, or the group that it is in")
            tasks |= made["tasks"]
            groups |= made.get("groups", {})
            found |= {leaf: rows.path for leaf, rows in local.items()}
            asked += [name] if name in made["tasks"] or name in made.get("groups", {}) else list(made["tasks"])
        for name, task in tasks.items():
            if getattr(task, "MULTIMODAL", False):
                raise UserError(f"lm-eval: {name} asks about pictures or sound", "choose a task of text")
            _set_fewshot(task, num_fewshot)
    return Tasks(tasks, groups, tuple(asked), found)


def not_local(names: Sequence[str]) -> list[str]:
    """Of these tasks, groups and tags, those whose rows are not local files; nothing is fetched or loaded.

    Raises:
        MissingExtraError: lm-eval is not installed.
        UserError: A name is unknown, or a task runs code that a model wrote.
    """
    version()
    with quiet():
        index = _catalogue().task_index
        for name in names:
            _known(name, index)
        return [name for name in names if not _local(list(_leaves(name, index)), index, None)]


def _known(name: str, index: Mapping[str, Any]) -> None:
    """Hold that there is such a task.

    Raises:
        UserError: There is none.
    """
    if name not in index:
        near = difflib.get_close_matches(name, index, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `lm-eval ls tasks`"
        raise UserError(f"lm-eval: there is no task {name}", hint)


def _local(leaves: Sequence[str], index: Mapping[str, Any], data: Path | None) -> dict[str, LocalData]:
    """The local files of some tasks: of all of them, or none.

    Raises:
        DataError: Files were named, and there is none for one of them.
        UserError: A task runs code that a model wrote.
    """
    found = {}
    for leaf in leaves:
        config = index[leaf].cfg or {}
        if config.get("unsafe_code"):
            what = f"lm-eval: {leaf} runs code that the model wrote, outside the sandbox"
            raise UserError(what, _SANDBOXED)
        rows = local_data(leaf, config, data)
        if rows is not None:
            found[leaf] = rows
        elif data is not None:
            stem = config.get("dataset_name") or leaf
            raise DataError(f"{data}: has no rows for {leaf}", f"name its file {stem}.jsonl, or leave the folder out")
    return found if len(found) == len(leaves) else {}


def _leaves(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """The single tasks of a name."""
    entry = index[name]
    members = (entry.cfg or {}).get("task") if entry.cfg and "group" in entry.cfg else sorted(entry.tags)
    if entry.cfg and "group" not in entry.cfg:
        yield name
        return
    for member in members or ():
        inner = member.get("group") or member.get("task") if isinstance(member, dict) else member
        if isinstance(inner, str) and inner in index:
            yield from _leaves(inner, index)


def _load(name: str, leaves: Sequence[str], local: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    """Build a task, group or tag; with rows from local files where there are some for all of its tasks."""
    manager = _catalogue()
    try:
        if not local:
            loaded: dict[str, Any] = manager.load([name])
            return loaded
        # Within a group, lm-eval lets an entry override fields of the task that it names.
        members = [{"task": leaf, "custom_dataset": local[leaf]} for leaf in leaves]
        tasks = manager.load([{"group": "local", "task": members}])["tasks"]
        group = _group(manager.task_index[name].cfg or {}, [tasks[leaf] for leaf in leaves])
        return {"tasks": tasks, "groups": {name: group} if group else {}}
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{error.name}, which the lm-eval task {name} needs,", _install(name, error)) from error
    except OSError as error:
        raise DataError(f"lm-eval: the data of {name} cannot be fetched ({_line(error)})", _MEND) from error
    except Exception as error:  # tasks run code of their own; whatever it meets, in one line
        hint = "do its rows have the fields that it asks for?" if local else "see the task's notes in lm-eval"
        raise DataError(f"lm-eval: the task {name} cannot be loaded ({_line(error)})", hint) from error


def _group(config: Mapping[str, Any], members: Sequence[Any]) -> Any:
    """The group of a configuration with these tasks in it, or None where it is that of a single task."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    if "group" not in config:
        return None
    fields = {field.name for field in dataclasses.fields(GroupConfig)}
    group = Group.from_config(GroupConfig(**{k: v for k, v in config.items() if k in fields}))
    for task in members:
        group.add(task)
    return group


def _install(name: str, error: ModuleNotFoundError) -> str:
    """The command that brings what a task needs: lm-eval's own extra, where it has one of that name."""
    import importlib.metadata

    extras = importlib.metadata.metadata("lm-eval").get_all("Provides-Extra") or []
    fits = [extra for extra in extras if name.replace("_", "-").startswith(extra)]
    return f"pip install 'lm-eval[{max(fits, key=len)}]'" if fits else f"pip install {error.name}"


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _set_fewshot(task: Any, number: int | None) -> None:
    """As lm-eval does it: a task whose own number is 0 keeps it."""
    own = task.get_config("num_fewshot")
    if number is None:
        if own is None:
            task.set_config(key="num_fewshot", value=0)
    elif own != 0:
        task.set_config(key="num_fewshot", value=number)
