"""The command that lets people label a run's answers, and shows what their labels say of the judge."""

import contextlib
import getpass

import click

import mooring
from mooring.cli import render
from mooring.cli.options import HELP, Verb, json_option
from mooring.cli.serving import serve_until_stopped
from mooring.errors import UserError


@click.command("label", cls=Verb, context_settings=HELP)
@click.argument("run", help="A finished run folder.")
@click.option("--n", default=200, show_default=True, type=click.IntRange(min=1), help="Answers to label.")
@click.option("--annotator", help="Who labels; the page asks for it. For --import, who labelled rows that do not say.")
@click.option("--page", help="Write the page to this HTML file, which saves labels to a file, in place of serving it.")
@click.option("--import", "file", help="Add the labels of this file: CSV, TSV, JSON, JSONL or Parquet.")
@click.option("--show", is_flag=True, help="Only show what the labels say.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on: of this machine alone.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to serve on; by default a free one.")
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
@json_option
def label(
    run: str,
    n: int,
    annotator: str | None,
    page: str | None,
    file: str | None,
    show: bool,
    host: str,
    port: int,
    browser: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Label a sample of a run's answers to harmful requests, and correct its rates for the judge's error.

    The page shows one answer after the other, without the model or the judge's verdict, and is used by keys. It is
    served on this machine alone until its button Done is pressed; labels are kept in labels.jsonl in the run folder as
    they are given. The sample is spread evenly over models and verdicts. `mooring report` shows what the labels say,
    `mooring select --corrected` chooses λ by it.

    \b
    Examples:
      mooring label runs/mine
      mooring label runs/mine --n 400 --annotator ana
      mooring label runs/mine --page label.html
      mooring label runs/mine --import labels.jsonl
    """
    if sum((page is not None, file is not None, show)) > 1:
        raise UserError("label: --page, --import and --show exclude each other", "give one", code="usage.invalid")
    if page is not None:
        count = mooring.label_page(run, page, n=n, seed=seed, annotator=annotator or "")
        return render.result(
            {"page": page, "answers": count}, f"The page with {count} answers is {page}.", as_json=as_json
        )
    if file is not None:
        error = mooring.import_labels(run, file, annotator=annotator or "import")
        return render.judge_error(error, as_json=as_json)
    if not show:
        _serve(run, n, seed, annotator, host, port, browser)
    render.judge_error(mooring.judge_error(run), as_json=as_json)


def _serve(run: str, n: int, seed: int, annotator: str | None, host: str, port: int, browser: bool) -> None:
    """Serve the page until it is done; Ctrl-C ends it too."""
    if annotator is None:
        with contextlib.suppress(Exception):  # a container may have no user's name
            annotator = getpass.getuser()
    server = mooring.label_server(run, n=n, seed=seed, annotator=annotator or "", host=host, port=port)
    click.echo(f"mooring: label the answers at {server.url}", err=True)
    click.echo("mooring: each label is saved as it is given; Done on the page, or Ctrl-C, ends this", err=True)
    serve_until_stopped(server, browser=browser)
