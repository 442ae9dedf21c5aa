"""Every error that Mooring raises on purpose.

`UserError` is what the person at the keyboard can mend: the command line prints it in one line and exits with
its `exit_code`. Anything else that escapes is a bug and keeps its traceback.
"""


class MooringError(Exception):
    """The root of the tree."""


class UserError(MooringError):
    """Something that the user can mend.

    Args:
        what: What is wrong, and where: it names the file, the field or the line.
        mend: What to do about it, in a few words.
    """

    exit_code = 2

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what if not mend else f"{what}; {mend}")
        self.what = what
        self.mend = mend


class RecipeError(UserError):
    """A recipe has an unknown key or a bad value."""


class ModelError(UserError):
    """A model is missing, empty, corrupt, or of a kind that is not supported."""


class MismatchError(UserError):
    """Two models do not belong together."""


class DataError(UserError):
    """A data set is missing, empty or malformed, or a prompt does not fit the model."""


class FetchError(DataError):
    """A data set is not on this machine, and the hub did not give it: it is out of reach, or the set is gated."""


class OutputError(UserError):
    """The output cannot be written: the folder holds something else, is in use, or the disk is full."""


class MissingExtraError(UserError):
    """An optional package is not installed."""

    def __init__(self, package: str, command: str) -> None:
        super().__init__(f"{package} is not installed", f"run: {command}")


class NoSafeLambdaError(UserError):
    """No λ of the grid keeps the attack success rate within its bound."""

    exit_code = 1
