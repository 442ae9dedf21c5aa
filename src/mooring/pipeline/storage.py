"""A storage: a bucket, or a part of one, of S3, Google Cloud Storage or Azure. Objects by name, each written whole."""

import contextlib
import errno
import importlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from mooring.errors import MissingExtraError, StorageError, UserError
from mooring.files import explained

AT_ONCE = 8
"""Objects that are sent or fetched at the same time."""
_CONNECT = 10
"""Seconds in which a server has to accept a connection."""
T = TypeVar("T")


class _Provider(NamedTuple):
    """The package that knows a provider, its extra, and how its credentials are given."""

    package: str
    extra: str
    credentials: str
    options: dict[str, Any]


PROVIDERS = {
    "s3": _Provider(
        "s3fs",
        "s3",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`",
        {"config_kwargs": {"connect_timeout": _CONNECT}},
    ),
    "gs": _Provider("gcsfs", "gcs", "run `gcloud auth application-default login`", {}),
    "az": _Provider("adlfs", "azure", "set AZURE_STORAGE_CONNECTION_STRING, or an account's name and key", {}),
}
"""The providers, by the scheme of their URLs."""
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),  # botocore
    *("DefaultCredentialsError", "RefreshError"),  # google.auth
    *("ClientAuthenticationError", "CredentialUnavailableError"),  # azure
}
"""The names of the packages' errors for missing credentials."""
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of this machine's disk, which are not those of a storage."""


class Storage:
    """A storage.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        files: fsspec's file system for it.
    """

    def __init__(self, url: str, files: Any) -> None:
        self.url = url.rstrip("/")
        self._files, self._root = files, self.url.partition("://")[2]

    @classmethod
    def open(cls, url: str) -> "Storage":
        """Open a storage. Credentials are those that the provider's own tools find.

        Raises:
            MissingExtraError: The provider's package is not installed (`extra.storage`).
            StorageError: There are no credentials (`storage.credentials`).
        """
        scheme = url.partition("://")[0]
        provider = PROVIDERS[scheme]
        try:
            importlib.import_module(provider.package)
        except ImportError:
            command = f"pip install 'mooring[{provider.extra}]'"
            raise MissingExtraError(provider.package, command, code="extra.storage") from None
        import fsspec

        with _explained(url):
            files = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **provider.options)
        return cls(url, files)

    def check(self) -> None:
        """Check that objects can be written, read and removed.

        Raises:
            StorageError: They cannot (`storage.credentials`, `storage.no_bucket`, `storage.forbidden`,
                `storage.unreachable`).
        """
        name = f".probe-{uuid.uuid4().hex}"
        self.write(name, name.encode())
        found = self.read(name)
        self.remove([name])
        if found != name.encode():
            what = f"{self.url}: what was written cannot be read again"
            raise StorageError(what, "look at the server", code="storage.unreachable")

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        with _explained(self.url):
            try:
                return bytes(self._files.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object."""
        with _explained(self.url):
            self._files.pipe_file(self._at(name), data)

    def sizes(self, below: str) -> dict[str, int]:
        """The objects whose names begin with `below/`, by the rest of their names, and their sizes in bytes.

        Raises:
            StorageError: One has a name that is no path in a folder (`storage.bad_name`).
        """
        root = self._at(below)
        with _explained(self.url):
            try:
                found = self._files.find(root, detail=True)
            except FileNotFoundError:
                return {}
        names = {name: name.lstrip("/").removeprefix(root).lstrip("/") for name in found}
        sizes = {names[name]: int(about["size"]) for name, about in found.items()}
        for name in sizes:
            if ".." in PurePosixPath(name).parts or "\0" in name:
                what = f"{self.url}/{below}: holds {name!a}, which is no file in a folder"
                raise StorageError(what, "remove it", code="storage.bad_name")
        return sizes

    def upload(self, files: Iterable[tuple[Path, str]]) -> None:
        """Send files of this machine; one that was removed meanwhile is left out."""

        def send(each: tuple[Path, str]) -> None:
            path, name = each
            with _explained(self.url):
                try:
                    self._files.put_file(str(path), self._at(name))
                except FileNotFoundError:
                    if path.exists():  # it is the bucket that is missing
                        raise

        _several(send, files)

    def download(self, files: Iterable[tuple[str, Path]]) -> None:
        """Fetch objects to files of this machine, whose folders are made.

        Raises:
            StorageError: One is not there (`storage.no_object`).
            OutputError: The disk is full, or the folder may not be written.
        """

        def get(each: tuple[str, Path]) -> None:
            name, path = each
            with explained(path), _explained(self.url):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._files.get_file(self._at(name), str(path))
                except FileNotFoundError:
                    what, hint = f"{self.url}/{name}: is not there any more", "start the command again"
                    raise StorageError(what, hint, code="storage.no_object") from None

        _several(get, files)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""

        def one(name: str) -> None:
            with _explained(self.url), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._at(name))

        _several(one, names)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def _several(work: Callable[[T], None], items: Iterable[T]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(work, items):
            pass


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a provider's package raises into a StorageError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each package has errors of its own
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise
        raise explanation(url, error) from None


def explanation(url: str, error: Exception) -> StorageError:
    """What an error of a provider's package means for its user."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = f" ({lines[0] if lines else type(error).__name__})"
    scheme, _, rest = url.partition("://")
    names, cause = set[str](), error.__cause__ or error.__context__
    for each in (error, cause):
        names |= {kind.__name__ for kind in type(each).__mro__}
    anonymous = str(getattr(error, "code", "")) == "401" or (scheme == "az" and isinstance(error, ValueError))
    if names & _NO_CREDENTIALS or anonymous:
        hint = PROVIDERS[scheme].credentials
        return StorageError(f"{url}: there are no credentials{why}", hint, code="storage.credentials")
    if isinstance(error, FileNotFoundError) or "ResourceNotFoundError" in names:
        bucket = rest.partition("/")[0]
        hint = "create it, or correct the name"
        return StorageError(f"{url}: there is no bucket {bucket}", hint, code="storage.no_bucket")
    if isinstance(error, PermissionError) or str(getattr(error, "code", "")) == "403":
        hint = "use credentials that may list, read, write and delete there"
        return StorageError(f"{url}: access is refused{why}", hint, code="storage.forbidden")
    hint = "check the network, and the address of the server if it is not the provider's own (AWS_ENDPOINT_URL)"
    return StorageError(f"{url}: cannot be reached{why}", hint, code="storage.unreachable")
