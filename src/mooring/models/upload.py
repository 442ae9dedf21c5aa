"""Upload a model folder to the Hugging Face hub, never over different weights."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mooring.errors import OutputError
from mooring.files import sha256
from mooring.hub import LOGIN, download_errors
from mooring.models.checkpoint import belongs
from mooring.models.resolve import MODEL_FILES

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")
"""Names of files that hold weights."""
LOADED = [*MODEL_FILES, *WEIGHTS]
"""What a loader may read: no such file of another model may remain next to the upload (an old `model.safetensors` is
loaded before new shards, an old `chat_template.jinja` before the template in the tokenizer's configuration)."""
_CHANGED = ("was changed by someone else meanwhile", "run it again")
_TOKEN = "check the owner's name, and that your token may write"
STATUS = {
    403: ("may not be written by you", _TOKEN),
    404: ("is not there, or may not be written by you", _TOKEN),
    409: _CHANGED,
    412: _CHANGED,
    413: ("takes no file of that size", "write smaller shards"),
    429: ("cannot be written now: too many requests", "wait a while, then run it again"),
}
"""What the hub's answer means, as (what, hint)."""


def check_hub_id(hub_id: str) -> str:
    """Check that an id is valid for a repository on the hub (`owner/name`), without a request; returns it.

    Raises:
        OutputError: It is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

    hint = "name it as owner/name, in ASCII letters, digits, '-', '_' and '.'"
    try:
        validate_repo_id(hub_id)
        valid = hub_id.isascii()  # huggingface_hub 1.31 accepts letters that the hub refuses
    except HFValidationError:
        valid = False
    if not valid:
        what = f"{hub_id!r}: cannot be the id of a repository on the hub"
        raise OutputError(what, hint, code="output.hub_bad_id")
    if hub_id.count("/") != 1:
        raise OutputError(f"{hub_id!r}: names no owner on the hub", hint, code="output.hub_bad_id")
    return hub_id


def check_push(hub_id: str, *, private: bool = False) -> None:
    """Check that a push can begin (id, network, login, visibility), before the model is made.

    Raises:
        OutputError: It cannot.
    """
    check_hub_id(hub_id)
    _look(_hub(hub_id), hub_id, private)


def push(folder: Path, hub_id: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a model folder to the hub; creates the repository if it does not exist.

    An interrupted push continues when it is repeated: weights that are already there do not count as different. With
    `overwrite`, whatever a loader could read of the other model is removed in the same commit, its card is replaced,
    and the hub's history keeps all of it. Otherwise, only files of the same name are replaced.

    Args:
        folder: A model folder, whole.
        hub_id: `owner/name`.
        private: Make a new repository private; an existing public one is refused. By default a new one follows its
            owner's settings, and an existing one stays as it is.
        overwrite: Replace different weights in the repository.

    Returns:
        The repository's address.

    Raises:
        OutputError: The id is invalid, the hub is out of reach or offline mode is set, there is no login, the token
            may not write, the repository holds other weights or is public despite `private`, or the folder has no
            weights.
    """
    folder = Path(folder)
    check_hub_id(hub_id)
    if not any(folder.glob("*.safetensors")):
        raise OutputError(f"{folder}: has no safetensors to send", "name a model folder", code="output.hub_no_weights")
    if away := next((path for path in sorted(folder.rglob("*")) if not belongs(path, folder)), None):
        what = f"{away}: links to a file outside the model's folder and the hub's cache"
        raise OutputError(what, "put the file itself there, or remove the link", code="output.hub_link_away")
    api = _hub(hub_id)
    found = _look(api, hub_id, private)
    failures: tuple[type[Exception], ...] = (*download_errors(), RuntimeError)  # hf_xet, which sends, raises the last
    try:
        if found is None:
            api.create_repo(hub_id, private=private or None, exist_ok=True)
        elif not overwrite:
            _check_same(found, folder, hub_id)
        api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            commit_message="Upload a merged model",
            delete_patterns=LOADED if overwrite else None,
        )
    except failures as error:
        raise _explained(error, hub_id, f"; the model stays in {folder}") from None
    return f"{api.endpoint}/{hub_id}"


def _hub(hub_id: str) -> Any:
    """The hub's client, after checking for offline mode and a login."""
    import huggingface_hub
    from huggingface_hub import constants  # not an attribute before it is imported, in version 2

    if constants.HF_HUB_OFFLINE:
        what = f"{hub_id}: cannot be sent while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        raise OutputError(what, "unset it, or leave out the push", code="output.hub_offline")
    if huggingface_hub.get_token() is None:
        raise OutputError(f"{hub_id}: cannot be sent: not logged in to the hub", LOGIN, code="output.hub_no_login")
    return huggingface_hub.HfApi()


def _look(api: Any, hub_id: str, private: bool) -> Any:
    """The repository's `ModelInfo` with the digests of its files; None if it does not exist."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        found = api.model_info(hub_id, files_metadata=True)
    except download_errors() as error:
        missing = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
        if missing and _status(error) != 401:
            return None
        raise _explained(error, hub_id) from None
    if private and not found.private:
        hint = "make it private in its settings on the hub, or name another"
        what = f"{hub_id}: is public already, and a private repository was requested"
        raise OutputError(what, hint, code="output.hub_public")
    return found


def _check_same(found: Any, folder: Path, hub_id: str) -> None:
    """Check that the repository's weight files, if any, are byte for byte the folder's."""
    other = [
        file.rfilename
        for file in found.siblings or ()
        if any(fnmatch(file.rfilename.lower(), pattern) for pattern in WEIGHTS)
        and not _same(file, folder / file.rfilename)
    ]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        what = f"{hub_id}: holds other weights on the hub ({other[0]}{more})"
        raise OutputError(what, "name another repository, or give --overwrite", code="output.hub_other_weights")


def _same(theirs: Any, ours: Path) -> bool:
    """Whether a file on the hub is this file: by size, then by SHA-256, which the hub stores for large files."""
    if theirs.lfs is None or not ours.is_file() or ours.stat().st_size != theirs.lfs.size:
        return False
    return sha256(ours) == str(theirs.lfs.sha256)


def _status(error: Exception) -> int | None:
    """The HTTP status of the hub's response, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explained(error: Exception, hub_id: str, after: str = "") -> OutputError:
    """What an error of `huggingface_hub` or `hf_xet` means, in one line; `after` is appended to the hint."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status, code = _status(error), "output.hub_refused"
    answer = " ".join(str(getattr(error, "server_message", None) or "").split())
    first = answer or str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        what, hint = "cannot be sent: not logged in to the hub, or the token has expired", LOGIN
        code = "output.hub_no_login"
    elif status in STATUS:
        what, hint = STATUS[status]
        what += f" ({answer})" if answer else ""
    elif isinstance(error, HfHubHTTPError):
        what, hint = f"cannot be sent ({first})", "run it again later" if (status or 0) >= 500 else "see what it says"
    elif isinstance(error, OSError) and error.filename is not None:
        what = f"{error.filename}: cannot be read ({error.strerror})"
        return OutputError(what, f"fix that, then run it again{after}", code="output.unreadable")
    elif isinstance(error, (ConnectionError, TimeoutError)) or _is_transport(error):
        what, hint = f"cannot be sent: the hub is out of reach ({first})", "connect, then run it again"
        code = "output.hub_unreachable"
    else:
        what, hint = f"cannot be sent ({first})", "run it again"
    return OutputError(f"{hub_id}: {what}", f"{hint}{after}", code=code)


def _is_transport(error: Exception) -> bool:
    """Whether the HTTP client (httpx or httpx2, as the hub's version has it) failed before there was an answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return any(isinstance(error, base) for base in HfHubHTTPError.__bases__ if not issubclass(base, OSError))
