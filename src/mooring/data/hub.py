"""What the Hugging Face hub gives, and what it says when it does not, in one line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mooring.data.rows import Row
from mooring.errors import DataError, FetchError
from mooring.hub import LOGIN, download_errors, explain

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<config>[\w.+-]+))?(?::(?P<split>\w+))?")
"""`owner/name`, `owner/name:split`, `owner/name@config`, `owner/name@config:split`."""


def load_hub_rows(repo: str, config: str | None = None, split: str | None = None) -> list[Row]:
    """Rows of a data set on the hub, by the `datasets` library, which runs no code from there.

    Args:
        repo: `owner/name`.
        config: One of its configurations, where it has several.
        split: One of its splits; where it is not given, `train`, or the only one.

    Raises:
        FetchError: It cannot be had, or is gated.
        DataError: It has no such split, or is empty.
    """
    import datasets

    name = f"{repo}@{config}" if config else repo
    try:
        loaded: Any = datasets.load_dataset(repo, config, split=split)
    except (*download_errors(), RuntimeError, datasets.exceptions.DatasetsError) as e:
        raise _refused(e, name, repo) from None
    if split is None:
        splits = list(loaded)
        split = splits[0] if len(splits) == 1 else "train"
        if split not in splits:
            raise DataError(f"{name}: has the splits {', '.join(splits)}", f"name one, such as {name}:{splits[0]}")
        loaded = loaded[split]
    rows = [Row(f"{name}:{split}:row {number}", values) for number, values in enumerate(loaded, 1)]
    if not rows:
        raise DataError(f"{name}:{split}: holds no rows", "name another split")
    return rows


def load_hub_files(
    repo: str, files: Sequence[str], read: Callable[[Path], list[Row]], may_lack: Sequence[str] = ()
) -> list[Row]:
    """Rows of single files of a data set on the hub, read as they lie there.

    Args:
        repo: `owner/name`.
        files: Paths in it, in order.
        read: How a file becomes rows.
        may_lack: Those of `files` that some versions do not have; they are passed over.

    Raises:
        FetchError: A file cannot be had, or the set is gated.
        DataError: `read` raises it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    errors: tuple[type[Exception], ...] = (*download_errors(), EntryNotFoundError)
    rows = []
    for file in files:
        try:
            path = Path(hf_hub_download(repo, file, repo_type="dataset"))
        except errors as e:
            if file in may_lack and isinstance(e, EntryNotFoundError):
                continue
            raise _refused(e, f"{repo}/{file}", repo) from None
        rows += [Row(row.origin.replace(str(path), f"{repo}/{file}", 1), row.values) for row in read(path)]
    return rows


def _refused(error: Exception, name: str, repo: str) -> DataError:
    what, hint = explain(error, f"huggingface.co/datasets/{repo}")
    offline = "connect, or name a local file; named sets are also looked for in the folder $MOORING_DATA"
    kind = DataError if isinstance(error, ValueError | RuntimeError) else FetchError  # the first: a bad name of a part
    return kind(f"{name}: {what}", hint or f"{offline}; private sets need a login: {LOGIN}")
