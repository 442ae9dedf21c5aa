"""Every error that Mooring raises on purpose.

    MooringError
    └── UserError                 something that the user can fix: one line, exit code 2
        ├── RecipeError           recipe.*    an unknown key or a bad value in a recipe or an option
        ├── ModelError            model.*     missing, corrupt, or of a kind that is not supported
        ├── MismatchError         model.*     two models that do not belong together
        ├── DataError             data.*      a data set that is missing, empty or malformed
        │   └── FetchError        data.*      not on this machine, and the hub did not provide it
        ├── OutputError           output.*    a folder or file that cannot be written
        ├── ClusterError          cluster.*   a Ray cluster that is not there, too small, or not the same everywhere
        ├── StorageError          storage.*   a bucket that cannot be used, or holds another run
        └── MissingExtraError     extra.*     an optional package that is not installed

Any other exception that escapes is a bug and keeps its traceback (exit code 1).
"""

from collections.abc import Callable
from typing import ClassVar

from mooring.printable import visible

_LONGEST = 10_000
"""Characters of a message or a hint."""


class MooringError(Exception):
    """The root of the tree."""


class UserError(MooringError):
    """Something that the user can fix.

    Args:
        message: What is wrong and where: names the file, the field or the line.
        hint: What to do about it, in a few words. In both, what could act on a terminal is written out, since it may
            come from a file, and what is longer than 10,000 characters is cut.
        code: A stable identifier, `<domain>.<reason>`, such as `model.base_mismatch`. Scripts and tests compare this,
            not the message. Defaults to the class's own general code.

    Attributes:
        exit_code: The exit status of the command line.
    """

    exit_code: ClassVar[int] = 2
    domain: ClassVar[str] = "usage"
    """What the codes of this class begin with."""

    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        message, hint = (visible(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …") for text in (message, hint))
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.code = code or f"{self.domain}.invalid"

    def __reduce__(self) -> tuple[Callable[..., "UserError"], tuple[str, ...]]:
        """What another process needs to raise it."""
        return _restored, (type(self).__name__, self.message, self.hint, self.code)


def _restored(kind: str, message: str, hint: str, code: str) -> UserError:
    found: type[UserError] = globals()[kind]
    error = found.__new__(found)
    UserError.__init__(error, message, hint, code=code)
    return error


class RecipeError(UserError):
    """A recipe has an unknown key or a bad value."""

    domain = "recipe"


class ModelError(UserError):
    """A model is missing, empty, corrupt, or of a kind that is not supported."""

    domain = "model"


class MismatchError(UserError):
    """Two models do not belong together."""

    domain = "model"


class DataError(UserError):
    """A data set is missing, empty or malformed, or a prompt does not fit the model."""

    domain = "data"


class FetchError(DataError):
    """A data set is not on this machine, and the hub did not provide it: it is out of reach, or the set is gated."""


class OutputError(UserError):
    """The output cannot be written: the folder holds something else, is in use, or the disk is full."""

    domain = "output"


class ClusterError(UserError):
    """A Ray cluster is not there, is too small for the run, or its nodes differ."""

    domain = "cluster"


class StorageError(UserError):
    """A bucket cannot be reached or used, or holds another run."""

    domain = "storage"


class MissingExtraError(UserError):
    """An optional package is not installed."""

    domain = "extra"

    def __init__(self, package: str, command: str, *, code: str = "extra.missing") -> None:
        super().__init__(f"{package} is not installed", f"run: {command}", code=code)
