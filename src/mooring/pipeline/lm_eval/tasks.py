"""lm-eval's tasks by name, with rows from the hub or local files; prompts, filters and metrics are lm-eval's own."""

import contextlib
import dataclasses
import difflib
import functools
import importlib.metadata
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.data.rows import is_data_file, read_rows
from mooring.errors import DataError, MissingExtraError, UserError
from mooring.files import sha256
from mooring.quiet import quiet

BELOW = dict.fromkeys(("SaylorTwift/bbh", "lukaemon/bbh"), Path("bbh/tasks"))
"""Hub id of a data set to the folder of its files below `$MOORING_DATA`: its authors' own, one file per task."""
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
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
        names: The requested names, with each tag replaced by its tasks.
        data: Task to the local file of its questions, if there is one.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    names: tuple[str, ...]
    data: Mapping[str, Path]


@dataclasses.dataclass(frozen=True, slots=True)
class LocalData:
    """Local files with the rows of a task.

    Attributes:
        splits: Split of the data set to its file.
        path: The file of the questions.
    """

    splits: Mapping[str, Path]
    path: Path

    def read(self, **_: Any) -> Any:
        """The data set, for lm-eval's `custom_dataset`.

        Raises:
            DataError: A file cannot be read.
        """
        from datasets import Dataset

        return {
            split: Dataset.from_list([dict(row.values) for row in read_rows(path)])
            for split, path in self.splits.items()
        }


def lm_eval_version() -> str:
    """lm-eval's version."""
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("lm-eval", "pip install 'mooring[lm-eval]'", code="extra.lm_eval") from None


def score_dependencies(names: Sequence[str]) -> dict[str, Any]:
    """What scores of tasks depend on besides the model, the engine and the arguments of `run_tasks`; for step keys.

    Nothing is downloaded, and no error is raised: `preflight` reports what is missing.

    Returns:
        `lm_eval`, its version, None if it is not installed; `rows`, the SHA-256 of each local file by task and split.
    """
    try:
        found: dict[str, Any] = {"lm_eval": lm_eval_version(), "rows": {}}
    except MissingExtraError:
        return {"lm_eval": None, "rows": {}}
    for name in names:
        with contextlib.suppress(UserError), quiet("datasets", "lm_eval"):
            for leaf, local in _local_rows(_leaves(name), None).items():
                found["rows"] |= {f"{leaf}/{split}": sha256(path) for split, path in sorted(local.splits.items())}
    return found


def load_tasks(names: Sequence[str], *, data: Path | None = None, num_fewshot: int | None = None) -> Tasks:
    """Load tasks, groups and tags by lm-eval's names, with their data.

    `data` is a file with the rows of the only task, or a folder with one file per task (`local_data`); it defaults to
    files below `$MOORING_DATA`, else the hub. `num_fewshot` is the number of examples before each question, unless a
    task forbids them; it defaults to the task's own.
    """
    lm_eval_version()
    if not names:
        raise UserError("lm-eval: no task is named", "name at least one, such as bbh", code="usage.no_tasks")
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    requested: list[str] = []
    files: dict[str, Path] = {}
    with quiet("datasets", "lm_eval"):
        for name in names:
            leaves = _leaves(name)
            if data is not None and data.is_file() and len(leaves) * len(names) > 1:
                hint = "name a folder with one file per task"
                raise DataError(f"{data}: is one file for several tasks", hint, code="data.single_file")
            local = _local_rows(leaves, data)
            loaded_tasks, loaded_groups = _load(name, leaves, local)
            if repeated := sorted(loaded_tasks.keys() & tasks.keys()):
                hint = "name it once, or the group that contains it"
                raise UserError(f"lm-eval: {repeated[0]} is requested twice", hint, code="usage.repeated_task")
            tasks |= loaded_tasks
            groups |= loaded_groups
            requested += [name] if name in {**loaded_tasks, **loaded_groups} else list(loaded_tasks)
            files |= {leaf: rows.path for leaf, rows in local.items()}
        for name, task in tasks.items():
            if getattr(task, "MULTIMODAL", False):
                what = f"lm-eval: {name} contains images or audio"
                raise UserError(what, "choose a text task", code="usage.multimodal_task")
            _set_fewshot(task, num_fewshot)
    return Tasks(tasks, groups, tuple(requested), files)


def remote_tasks(names: Sequence[str]) -> list[str]:
    """The tasks, groups and tags among these whose rows would be downloaded; nothing is downloaded or loaded."""
    lm_eval_version()
    with quiet("datasets", "lm_eval"):
        return [name for name in names if not _local_rows(_leaves(name), None)]


def local_data(task: str, config: Mapping[str, Any], data: Path | None) -> LocalData | None:
    """Find the local files of a task's rows, in any form that `data.rows.read_rows` reads; None if there are none.

    In a folder, the questions are in the file with the name of the task, or of its part of the data set, such as
    `navigate.json`; rows of another split, such as few-shot examples, are in `navigate-train.json`. `data` defaults to
    the folder of the data set below `$MOORING_DATA`.
    """
    if data is None:
        below, home = BELOW.get(str(config.get("dataset_path"))), os.environ.get("MOORING_DATA")
        if below is None or not home or not (Path(home) / below).is_dir():
            return None
        data = Path(home) / below
    if not data.exists():
        raise DataError(f"{data}: no such file or folder", "check the path", code="data.not_found")
    main = str(config.get("test_split") or config.get("validation_split") or "test")
    if data.is_file():
        return LocalData({main: data}, data)
    paths = (path for path in sorted(data.iterdir()) if path.is_file() and is_data_file(path.name))
    files = {path.name.partition(".")[0]: path for path in paths}
    for stem in (task, config.get("dataset_name")):
        if stem and stem in files:
            others = {config[key] for key in _SPLITS if config.get(key)} - {main}
            splits = {split: files[f"{stem}-{split}"] for split in others if f"{stem}-{split}" in files}
            return LocalData({main: files[stem]} | splits, files[stem])
    return None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random generators of Python and numpy, which some tasks use, and restore their state after."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@functools.cache
def _manager() -> Any:
    """lm-eval's index of all tasks; it takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _leaves(name: str) -> list[str]:
    """The single tasks of a task, group or tag."""
    index = _manager().task_index
    if name not in index:
        near = difflib.get_close_matches(name, index, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `lm-eval ls tasks`"
        raise UserError(f"lm-eval: there is no task {name}", hint, code="usage.unknown_task")
    entry = index[name]
    if entry.cfg and "group" not in entry.cfg:
        return [name]
    leaves: list[str] = []
    for member in (entry.cfg.get("task") if entry.cfg else sorted(entry.tags)) or ():
        inner = member.get("group") or member.get("task") if isinstance(member, dict) else member
        if isinstance(inner, str) and inner in index:
            leaves += _leaves(inner)
    return leaves


def _local_rows(leaves: Sequence[str], data: Path | None) -> dict[str, LocalData]:
    """The local files of all of these tasks; none if one of them has none."""
    found = {}
    for leaf in leaves:
        config = _manager().task_index[leaf].cfg or {}
        if config.get("unsafe_code"):
            what = f"lm-eval: {leaf} runs code that the model wrote, outside the sandbox"
            raise UserError(what, _SANDBOXED, code="usage.unsafe_task")
        rows = local_data(leaf, config, data)
        if rows is not None:
            found[leaf] = rows
        elif data is not None:
            hint = f"name its file {config.get('dataset_name') or leaf}.jsonl, or omit the folder"
            raise DataError(f"{data}: has no rows for {leaf}", hint, code="data.no_rows_for_task")
    return found if len(found) == len(leaves) else {}


def _load(
    name: str, leaves: Sequence[str], local: Mapping[str, LocalData]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Load the tasks and groups of a name; with rows from local files if there are some."""
    manager = _manager()
    try:
        if not local:
            loaded = manager.load([name])
            return loaded["tasks"], loaded.get("groups", {})
        # Within a group, lm-eval lets an entry override fields of the task that it names.
        members = [{"task": leaf, "custom_dataset": local[leaf].read} for leaf in leaves]
        tasks = manager.load([{"group": "local", "task": members}])["tasks"]
        config = manager.task_index[name].cfg or {}
        return tasks, {name: _group(config, [tasks[leaf] for leaf in leaves])} if "group" in config else {}
    except UserError:
        raise
    except ModuleNotFoundError as error:
        extras = importlib.metadata.metadata("lm-eval").get_all("Provides-Extra") or []
        matching = [extra for extra in extras if name.replace("_", "-").startswith(extra)]
        package = f"'lm-eval[{max(matching, key=len)}]'" if matching else error.name
        what = f"{error.name}, which the lm-eval task {name} needs,"
        raise MissingExtraError(what, f"pip install {package}", code="extra.lm_eval_task") from error
    except OSError as error:
        what = f"lm-eval: the data of {name} cannot be downloaded ({_line(error)})"
        raise DataError(what, "connect, or give its rows as local files", code="data.download_failed") from error
    except Exception as error:  # tasks run code of their own, which may raise anything
        hint = "do its rows have the fields that it reads?" if local else "see the task's notes in lm-eval"
        what = f"lm-eval: the task {name} cannot be loaded ({_line(error)})"
        raise DataError(what, hint, code="data.unloadable_task") from error


def _group(config: Mapping[str, Any], members: Sequence[Any]) -> Any:
    """A group of lm-eval with these tasks in it."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    fields = {field.name for field in dataclasses.fields(GroupConfig)}
    group = Group.from_config(GroupConfig(**{k: v for k, v in config.items() if k in fields}))
    for task in members:
        group.add(task)
    return group


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _set_fewshot(task: Any, number: int | None) -> None:
    """As in lm-eval, a task whose own number is 0 keeps it."""
    own = task.get_config("num_fewshot")
    if number is None:
        number = 0 if own is None else own
    if own != 0:
        task.set_config(key="num_fewshot", value=number)
