"""The command line: thin verbs over `mooring.api`."""

import atexit
import contextlib
import os
import sys


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 done, 1 no λ within the bound, 2 bad input (one line on standard error), 130 stopped by Ctrl-C.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from mooring.errors import UserError

    try:
        from mooring.cli.app import app

        app(args=argv, prog_name="mooring", standalone_mode=True)
    except UserError as error:
        sys.stdout.flush()
        print("mooring: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before the verb's own words on it are loaded
        sys.exit(130)


def entry() -> None:
    """The program: `main`, then out at once, since taking torch apart at the end takes Python half a second."""
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    if code is not None and not isinstance(code, int):
        sys.exit(code)  # type: ignore[arg-type]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)
