"""Rows of data sets on the Hugging Face hub; what the hub refuses is reported in one line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mooring.data.rows import Row
from mooring.errors import DataError, FetchError
from mooring.hub import LOGIN, download_errors, explain


def load_hub_rows(repo: str, config: str | None = None, split: str | None = None) -> list[Row]:
    """Load rows by the `datasets` library, which runs no code from the hub.

    Args:
        repo: `owner/name`.
        config: Name of a configuration, if the set has several.
        split: Name of a split; defaults to `train`, or the only one.

    Raises:
        FetchError: It cannot be fetched, or is gated (`data.not_fetched`).
        DataError: It has no such configuration or split (`data.unknown_split`), or is empty (`data.empty`).
    """
    import datasets

    name = f"{repo}@{config}" if config else repo
    try:
        loaded: Any = datasets.load_dataset(repo, config, split=split)
    except (*download_errors(), RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _explained(error, name, repo) from None
    if split is None:
        splits = list(loaded)
        split = splits[0] if len(splits) == 1 else "train"
        if split not in splits:
            hint = f"name one, such as {name}:{splits[0]}"
            raise DataError(f"{name}: has the splits {', '.join(splits)}", hint, code="data.unknown_split")
        loaded = loaded[split]
    rows = [Row(f"{name}:{split}:row {number}", values) for number, values in enumerate(loaded, 1)]
    if not rows:
        raise DataError(f"{name}:{split}: holds no rows", "name another split", code="data.empty")
    return rows


def load_hub_files(
    repo: str, files: Sequence[str], read: Callable[[Path], list[Row]], optional: Sequence[str] = ()
) -> list[Row]:
    """Load rows of individual files of a data set.

    Args:
        repo: `owner/name`.
        files: Paths in it, in order.
        read: Reads the rows of a file.
        optional: Those of `files` that some versions of the set do not have; they are skipped.

    Raises:
        FetchError: A file cannot be fetched, or the set is gated (`data.not_fetched`).
        DataError: Raised by `read`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    errors: tuple[type[Exception], ...] = (*download_errors(), EntryNotFoundError)
    rows = []
    for file in files:
        try:
            path = Path(hf_hub_download(repo, file, repo_type="dataset"))
        except errors as error:
            if file in optional and isinstance(error, EntryNotFoundError):
                continue
            raise _explained(error, f"{repo}/{file}", repo) from None
        rows += [Row(row.origin.replace(str(path), f"{repo}/{file}", 1), row.values) for row in read(path)]
    return rows


def _explained(error: Exception, name: str, repo: str) -> DataError:
    what, hint = explain(error, f"huggingface.co/datasets/{repo}")
    offline = "connect, or name a local file; named sets are also looked for in the folder $MOORING_DATA"
    hint = hint or f"{offline}; private sets need a login: {LOGIN}"
    if isinstance(error, ValueError | RuntimeError):  # a bad name of a configuration or split
        return DataError(f"{name}: {what}", hint, code="data.unknown_split")
    return FetchError(f"{name}: {what}", hint, code="data.not_fetched")
