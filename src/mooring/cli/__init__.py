"""The command line: thin commands over `mooring.api`."""

import errno
import logging
import os
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mooring.errors import UserError

INTERRUPTED = 130
FAILED, BAD_INPUT, OVER_BOUND = 1, 2, 3


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 success; 1 unexpected failure, with a traceback; 2 usage or bad input, in one line; 3 no λ is within
    the bound, or the verdict is not to ship; 130 interrupted. With `--json`, an error is also printed to standard
    output as one JSON object.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and some CPUs lack a kernel
    from mooring.cli.terminal import safe_output

    with safe_output():
        _run(sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> NoReturn:
    from mooring.errors import UserError
    from mooring.printable import shorten

    as_json = "--json" in argv
    try:
        _check_arguments(argv)
        import click

        from mooring.cli.app import top

        try:
            sys.exit(top.main(args=argv, prog_name="mooring", standalone_mode=False) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f"see {context.command_path if context else 'mooring'} --help"
            raise UserError(error.format_message().removesuffix("."), hint, code="usage.invalid") from None
        except click.Abort:
            sys.exit(INTERRUPTED)
    except UserError as error:
        _refuse(error, as_json)
    except KeyboardInterrupt:  # before the verb's own handler is installed
        sys.exit(INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # on the command line, or in a file
            name = shorten(str(error.filename or ""))
            _refuse(UserError(f"{name}: the name is too long", "name another", code="usage.name_too_long"), as_json)
        if as_json:
            _print_error("internal.error", f"{type(error).__name__}: {error}", "this is a bug: please report it")
        traceback.print_exc()
        sys.exit(FAILED)


def _check_arguments(argv: list[str]) -> None:
    """Raise UserError for an argument that no file can be named by: with a null character, or a lone surrogate."""
    from mooring.errors import UserError

    for argument in argv:
        try:
            usable = b"\0" not in os.fsencode(argument)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise UserError(f"{argument!a}: is not text", "write it again", code="usage.not_text")


def _refuse(error: "UserError", as_json: bool) -> NoReturn:
    """Print an error in one line, with what an engine has printed below it, and exit."""
    if as_json:
        _print_error(error.code, error.message, error.hint)
    sys.stdout.flush()
    print("mooring: " + " ".join(str(error).split()), file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(textwrap.indent(note, "  "), file=sys.stderr)
    sys.exit(error.exit_code)


def _print_error(code: str, message: str, hint: str) -> None:
    from mooring.printable import as_json

    print(as_json({"error": {"code": code, "message": message, "hint": hint}}))
