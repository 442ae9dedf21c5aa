"""Send a model folder to the Hugging Face hub, and never over weights that are not the same."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mooring.errors import OutputError
from mooring.files import sha256
from mooring.hub import LOGIN, download_errors
from mooring.models.resolve import WANTED

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")
"""Names of files that hold weights."""
LOADED = [*WANTED, *WEIGHTS]
"""What a loader may read: none of another model's may stay beside what is sent (an old `model.safetensors` is loaded
before new shards, an old `chat_template.jinja` before the template in the tokenizer's configuration)."""
STATUS = {
    403: ("may not be written by you", "check the owner's name, and that your token may write"),
    404: ("is not there, or may not be written by you", "check the owner's name, and that your token may write"),
    409: ("was changed by somebody else meanwhile", "run it again"),
    412: ("was changed by somebody else meanwhile", "run it again"),
    413: ("takes no file of that size", "write smaller shards"),
    429: ("cannot be written now: too many requests", "wait a while, then run it again"),
}
"""What the hub's answer means, as (what, hint)."""


def check_hub_id(hub_id: str) -> str:
    """Hold that an id can be that of a repository on the hub; gives it back. Asks nothing of the hub.

    Args:
        hub_id: `owner/name`, without a revision.

    Raises:
        OutputError: It has another form.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

    hint = "name it as owner/name, in ASCII letters, digits, '-', '_' and '.'"
    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        raise OutputError(f"{hub_id!r}: cannot be the id of a repository on the hub", hint) from None
    if hub_id.count("/") != 1:
        raise OutputError(f"{hub_id!r}: names no owner on the hub", hint)
    return hub_id


def check_push(hub_id: str, *, private: bool = False) -> None:
    """Hold that a push can begin, before the work that makes the model: id, network, login, visibility.

    Raises:
        OutputError: It cannot.
    """
    check_hub_id(hub_id)
    _look(_hub(hub_id), hub_id, private)


def push(folder: Path, hub_id: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Send a model folder to the hub, where it makes the repository if there is none.

    A push that was cut off goes on when it is repeated: weights that are there already are not other weights. With
    `overwrite`, whatever a loader could read of the other model is removed in the same upload; its card is replaced,
    and the hub's history keeps all of it. Without, nothing but files of the same name is touched.

    Args:
        folder: A model folder, whole.
        hub_id: `owner/name`.
        private: Make it private, so that only its owner sees it; a repository that is public already is refused.
            Without, a new one is what its owner's settings say, and one that is there stays as it is.
        overwrite: Take the place of other weights in the repository.

    Returns:
        The repository's address.

    Raises:
        OutputError: The id is no id, the hub is out of reach or offline mode is set, nobody is logged in, the token
            may not write, the repository holds other weights or is public against `private`, or the folder has no
            weights.
    """
    folder = Path(folder)
    check_hub_id(hub_id)
    if not any(folder.glob("*.safetensors")):
        raise OutputError(f"{folder}: has no safetensors to send", "name a model folder")
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
    """The hub's client, once it is known that it may be asked and who asks.

    Raises:
        OutputError: Offline mode is set, or nobody is logged in.
    """
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        what = f"{hub_id}: cannot be sent while HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        raise OutputError(what, "unset it, or leave out the push")
    if huggingface_hub.get_token() is None:
        raise OutputError(f"{hub_id}: cannot be sent: not logged in to the hub", LOGIN)
    return huggingface_hub.HfApi()


def _look(api: Any, hub_id: str, private: bool) -> Any:
    """The repository as the hub describes it (`ModelInfo`, with the files' digests); None where there is none.

    Raises:
        OutputError: The hub does not say, or the repository is public and a private one is asked for.
    """
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
        raise OutputError(f"{hub_id}: is public already, and a private repository was asked for", hint)
    return found


def _check_same(found: Any, folder: Path, hub_id: str) -> None:
    """Hold that the repository's weight files, if any, are byte for byte the folder's.

    Raises:
        OutputError: They are not.
    """
    other = [
        file.rfilename
        for file in found.siblings or ()
        if any(fnmatch(file.rfilename.lower(), pattern) for pattern in WEIGHTS)
        and not _same(file, folder / file.rfilename)
    ]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        what = f"{hub_id}: holds other weights on the hub ({other[0]}{more})"
        raise OutputError(what, "name another repository, or give --overwrite")


def _same(theirs: Any, ours: Path) -> bool:
    """Whether a file on the hub is this file: by size, then by SHA-256, which the hub keeps for large files."""
    if theirs.lfs is None or not ours.is_file() or ours.stat().st_size != theirs.lfs.size:
        return False
    return sha256(ours) == str(theirs.lfs.sha256)


def _status(error: Exception) -> int | None:
    """The HTTP status of the hub's answer, where there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explained(error: Exception, hub_id: str, after: str = "") -> OutputError:
    """What a failed upload means, in one line.

    Args:
        error: What `huggingface_hub` or `hf_xet` raised.
        hub_id: The repository.
        after: What else to say at the end.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = _status(error)
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    first = said or str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        what, hint = "cannot be sent: not logged in to the hub, or the token has run out", LOGIN
    elif status in STATUS:
        what, hint = STATUS[status]
        what += f" ({said})" if said else ""
    elif isinstance(error, HfHubHTTPError):
        what, hint = f"cannot be sent ({first})", "run it again later" if (status or 0) >= 500 else "see what it says"
    elif isinstance(error, OSError) and error.filename is not None:
        what = f"{error.filename}: cannot be read ({error.strerror})"
        return OutputError(what, f"see to it, then run it again{after}")
    elif isinstance(error, (ConnectionError, TimeoutError)) or _is_transport(error):
        what, hint = f"cannot be sent: the hub is out of reach ({first})", "connect, then run it again"
    else:
        what, hint = f"cannot be sent ({first})", "run it again"
    return OutputError(f"{hub_id}: {what}", f"{hint}{after}")


def _is_transport(error: Exception) -> bool:
    """Whether the HTTP client (httpx or httpx2, as the hub's version has it) failed before there was an answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return any(isinstance(error, base) for base in HfHubHTTPError.__bases__ if not issubclass(base, OSError))
