"""Files and folders that appear under their final name complete, or not at all."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mooring.errors import OutputError, UserError

PARTIAL = ".partial-"
"""Prefix of files that are still being written; after a crash, leftovers with this prefix can be deleted."""
_FULL = ("no room left on the disk", "free some, or choose another folder", "output.disk_full")
_FAULTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: (
        "a file is too large for this disk",
        "choose smaller shards, or another disk",
        "output.file_too_large",
    ),
    errno.EISDIR: ("is a folder, not a file", "move it away", "output.is_a_folder"),
    errno.ENOTDIR: ("a folder above it is a file", "choose another folder", "output.parent_is_a_file"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one", "output.name_too_long"),
    errno.ELOOP: ("is a link that leads back to itself", "name another folder", "output.link_loop"),
}
_FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM)
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that cannot lock a folder (NFS, some in user space)."""


def expanded(text: str | Path) -> Path:
    """A path in which `~` is a home folder; as it is, if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn OS errors while `path` is written, such as a full disk or a vanished input, into an OutputError."""
    try:
        yield
    except OSError as error:
        other = _other(error, path)
        if other and error.errno in (*_FORBIDDEN, errno.ENOENT):
            problem = f"{other}: cannot be read ({error.strerror})"
            raise OutputError(problem, "check that it exists", code="output.unreadable") from None
        if error.errno in _FAULTS:
            problem, hint, code = _FAULTS[error.errno]
            raise OutputError(f"{path}: {problem}", hint, code=code) from None
        if error.errno in _FORBIDDEN:
            problem = f"{path}: may not be written ({error.strerror})"
            raise OutputError(problem, "choose another folder", code="output.forbidden") from None
        if error.errno == errno.ENOENT and Path(str(error.filename)).name.startswith(PARTIAL):  # as in /proc
            raise OutputError(
                f"{path}: files cannot be made there", "choose another folder", code="output.forbidden"
            ) from None
        raise


def _other(error: OSError, path: Path) -> Path | None:
    """The file of an error, unless it is `path`, a parent of it, inside it, or partly written."""
    if not isinstance(error.filename, str):
        return None
    file, own = Path(error.filename).absolute(), path.absolute()
    ours = file.is_relative_to(own) or own.is_relative_to(file) or any(p.startswith(PARTIAL) for p in file.parts)
    return None if ours else Path(error.filename)


def atomic_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) in one step."""
    atomic_bytes(path, text.encode("utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add text to the end of a file that others write too, such as the summary of a CI job.

    Raises:
        OutputError: It cannot be written.
    """
    with explained(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def atomic_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: under another name beside it, flushed to disk, then renamed.

    Raises:
        OutputError: The disk is full, or the folder may not be written.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[int]:
    """A descriptor of a file to lock, created if there is none; its content stays.

    Raises:
        OutputError: It is a link, a folder, a pipe or a device (`output.bad_lock`), or may not be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    refused = OutputError(f"{path}: is not an ordinary file", "remove it", code="output.bad_lock")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise refused
    with explained(path):
        handle = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise refused
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; rename it to `path` at the end of the block, or remove it on an error.

    Only one process at a time can write a path; leftovers of a killed one are removed. A link is followed.

    Raises:
        OutputError: `path` exists and is not an empty folder, another process is writing it, the disk is full, or it
            may not be written.
    """
    with explained(path):
        free_for_output(path)
        target = _target(path)
        _make_parent(target)
        scratch, lock = _claim(target)
        try:
            free_for_output(path)  # another process may have finished it since
            yield scratch
            _rename(scratch, target)
        except UserError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if str(scratch) not in error.message:
                raise
            error.message = error.message.replace(str(scratch), str(path))
            error.args = (f"{error.message}; {error.hint}" if error.hint else error.message,)
            raise
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _scratch(path: Path) -> Path:
    return path.parent / f"{PARTIAL}{path.name}"


def _target(path: Path) -> Path:
    """The target of a link, or the path itself."""
    if not path.is_symlink():
        return path
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # raises OSError (ELOOP) for a loop, which `resolve` does not on Python 3.13
    return path.resolve()


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        problem = f"{path}: lies in a file, not in a folder"
        raise OutputError(problem, "choose another folder", code="output.parent_is_a_file") from None


def _claim(path: Path) -> tuple[Path, int]:
    """Make the empty folder that becomes `path`, and a descriptor that locks it until this process ends."""
    scratch = _scratch(path)
    while True:
        if scratch.is_symlink() or scratch.is_file():
            scratch.unlink()
        with contextlib.suppress(FileExistsError):
            scratch.mkdir()
        handle = _locked(scratch, path)
        if handle is None:  # another writer ended in between
            continue
        try:
            for left in scratch.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            return scratch, handle
        except BaseException:
            os.close(handle)
            raise


def _locked(scratch: Path, path: Path) -> int | None:
    """A descriptor that locks a folder, or None if the folder is gone."""
    handle = None
    try:
        handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "wait for it to end, or choose another folder"
            raise OutputError(f"{path}: is being written by another process", hint, code="output.locked") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not os.path.samestat(os.fstat(handle), scratch.lstat()):  # it was renamed before it was locked
            raise FileNotFoundError
        return handle
    except BaseException as error:
        if handle is not None:
            os.close(handle)
        if isinstance(error, FileNotFoundError):
            return None
        raise


def _rename(scratch: Path, path: Path) -> None:
    """Rename the complete folder, over an empty one if there is one."""
    try:
        os.replace(scratch, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            problem = f"{path}: was filled by another process in the meantime"
            raise OutputError(problem, "name another folder", code="output.not_empty") from None
        raise


def free_for_output(path: Path) -> None:
    """Raise OutputError if an output path is a file, or a folder that is not empty or may not be read."""
    with explained(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path}: is a file", "name a folder that does not exist yet", code="output.is_a_file")
        if path.is_dir() and any(path.iterdir()):
            hint = "name another folder, or empty this one"
            raise OutputError(f"{path}: is not empty", hint, code="output.not_empty")


def need_room(path: Path, wanted: int) -> None:
    """Raise OutputError if fewer than `wanted` bytes are free on the disk of `path`, which need not exist yet."""
    probe = path.absolute()
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < wanted:
        problem = f"{path}: {gibibytes(wanted)} will be written and {gibibytes(free)} are free"
        raise OutputError(problem, "free some room, or choose a folder on another disk", code="output.disk_full")


def gibibytes(count: int) -> str:
    """Format a number of bytes."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal: the digest that the hub lists for it too."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
