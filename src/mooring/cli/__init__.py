"""The command line: thin commands over `mooring.api`."""

import os
import sys
import textwrap

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
    from mooring.errors import UserError
    from mooring.printable import visible

    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv
    try:
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
        if as_json:
            _print_error(error.code, error.message, error.hint)
        sys.stdout.flush()
        print("mooring: " + " ".join(str(error).split()), file=sys.stderr)
        for note in getattr(error, "__notes__", ()):  # what an engine has printed
            print(textwrap.indent(visible(note), "  "), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before the verb's own handler is installed
        sys.exit(INTERRUPTED)
    except Exception as error:
        if as_json:
            _print_error("internal.error", f"{type(error).__name__}: {error}", "this is a bug: please report it")
        raise


def _print_error(code: str, message: str, hint: str) -> None:
    from mooring.printable import as_json

    print(as_json({"error": {"code": code, "message": message, "hint": hint}}))
