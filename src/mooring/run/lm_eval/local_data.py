"""Local files in place of the data sets that lm-eval's tasks fetch from the hub."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.errors import DataError
from mooring.sources.rows import is_data_file, read_rows

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
