"""The commands, each with its options, its help with examples, and one call."""

import os
import sys
from pathlib import Path
from typing import Any

import click

import mooring
from mooring.cli import BAD_INPUT, OVER_BOUND, render
from mooring.cli.compare import compare
from mooring.cli.label import label
from mooring.cli.merge import check_merge, extract_lora, merge, mergekit, push, to_gguf, verify
from mooring.cli.options import (
    HELP,
    Verbs,
    base_argument,
    dry_run_option,
    fields_given,
    json_option,
    overrides,
    set_option,
    split_option,
    track_option,
    tuned_argument,
    verb,
)
from mooring.cli.score import compare_evals, generate, lm_eval, prefer, rejudge, score, verify_served
from mooring.cli.serving import serve_until_stopped
from mooring.errors import UserError


@click.group(cls=Verbs, context_settings=HELP)
@click.version_option(
    mooring.__version__, "--version", message="mooring %(version)s", help="Show the version and exit."
)
def top() -> None:
    """Keep a fine-tuned language model as safe as the aligned model it came from.

    \b
    Examples:
      mooring quickstart
      mooring safeguard meta-llama/Llama-3.1-8B-Instruct ./tuned --task task.jsonl --out runs/mine
      mooring run recipes/quickstart.yaml
      mooring merge BASE TUNED --lam 0.6 --out merged
    """


@verb(top, "safeguard", fields="safeguard", judge=True)
@base_argument
@click.argument("tuned", nargs=-1, required=True, help="The model tuned from it; several are compared.")
@click.option("--out", required=True, help="Run folder; a stopped run continues in it.")
@set_option
@track_option
@dry_run_option
@json_option
def safeguard(
    base: str, tuned: tuple[str, ...], out: str, track: Any, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Find the λ that makes TUNED as safe as BASE, and merge.

    Merges TUNED back towards BASE at several λ, measures each, chooses λ, and writes the merged model and a report.
    With several TUNED, or several --methods, it compares them, and writes a report alone.

    \b
    Examples:
      mooring safeguard base/ tuned/ --task task.jsonl --out runs/mine
      mooring safeguard base/ seed1/ seed2/ --methods linear,slerp,dare_linear,model_stock --out runs/methods
      mooring safeguard meta-llama/Llama-3.1-8B-Instruct adapter/ --safety advbench --out runs/mine
      mooring safeguard base/ tuned/ --lambdas 0.3,0.5,0.7 --set generate.safety.max_tokens=64 --out runs/mine
      mooring safeguard base/ adapter/ --engine vllm --judges wildguard --judge-engine vllm --out runs/mine
    """
    _start(mooring.safeguard_recipe(base, tuned, out=out, overrides=overrides(options)), track, dry_run, as_json)


@verb(top, "run", fields="run", judge=True, defaults=False)
@click.argument("recipe", help="A recipe, as YAML.")
@set_option
@track_option
@dry_run_option
@json_option
def run(recipe: str, track: Any, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run a recipe: tune, merge, generate, score, select, report.

    A run that was stopped continues if it is started again. Options override the recipe's fields, and --set any field;
    of several for one field the last counts.

    \b
    Examples:
      mooring run recipes/quickstart.yaml
      mooring run mine.yaml --margin 0.05 --confidence 0.9 --engine vllm
      mooring run mine.yaml --set merge.method=slerp --set 'merge.lambdas=[0.3, 0.5]' --dry-run
    """
    _start(mooring.Recipe.load(recipe).override(overrides(options)), track, dry_run, as_json)


@verb(top, "quickstart")
@click.option("--out", default="runs/quickstart", show_default=True, help="Run folder.")
@set_option
@dry_run_option
@json_option
def quickstart(out: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Run the bundled recipe on the bundled model, offline.

    It takes four minutes on two CPU cores that have instructions for bfloat16, and longer on others.

    \b
    Examples:
      mooring quickstart
      mooring quickstart --out /tmp/first-look
    """
    from mooring.config import bundled_recipe

    recipe = mooring.Recipe.load(bundled_recipe("quickstart"))
    _start(recipe.override({"out": out, **overrides(options)}), None, dry_run, as_json)


@verb(top, "tune", fields="tune")
@click.argument("base", help="The model to tune: folder, .gguf file or hub id.")
@click.argument("data", nargs=-1, required=True, help="Examples: files, hub ids; FILE#500 takes 500.")
@click.option("--out", required=True, help="Folder for the LoRA adapter.")
@json_option
def tune(base: str, data: tuple[str, ...], out: str, as_json: bool, **options: Any) -> None:
    """Tune a LoRA adapter on the responses of DATA.

    The defaults are the paper's. DATA is JSONL, JSON, CSV or Parquet with `messages`, `prompt`/`completion` or
    `instruction`/`input`/`output`.

    \b
    Examples:
      mooring tune base/ task.jsonl --out adapter
      mooring tune meta-llama/Llama-3.1-8B-Instruct tools.jsonl extra.csv#500 --num-train-epochs 1 --out adapter
    """
    with render.bar("tune") as on_event:
        adapter = mooring.tune(base, data, out=out, on_event=on_event, **fields_given(options))
    render.result({"adapter": str(adapter)}, f"The adapter is in {adapter}.", as_json=as_json)


for command in (
    merge,
    mergekit,
    verify,
    check_merge,
    extract_lora,
    to_gguf,
    push,
    generate,
    score,
    rejudge,
    label,
    verify_served,
    prefer,
    lm_eval,
    compare,
    compare_evals,
):
    top.add_command(command)


@verb(top, "select", fields="select", defaults=False)
@click.argument("run", help="A run folder.")
@click.option("--metric", help="The task score that decides; defaults to the run's own.")
@json_option
def select(run: str, metric: str | None, as_json: bool, **options: Any) -> None:
    """Choose λ again from a run's validation scores.

    The bound, policy or metric may differ; the run stays as it is. Options default to the run's own. Exits with 3 if no
    λ is within the bound, and prints the nearest one.

    \b
    Examples:
      mooring select runs/quickstart --margin 0.1
      mooring select runs/quickstart --bound 0.05 --confidence 0.9
      mooring select runs/quickstart --policy paper --metric response_loss
      mooring select runs/mine --corrected
    """
    choice = mooring.select(run, metric=metric, **fields_given(options))
    render.result(choice, f"{choice.reason} {choice.sensitivity}".strip(), as_json=as_json)
    if not choice.within:
        sys.exit(OVER_BOUND)


@verb(top, "data", fields="preview_data")
@click.argument("data", help="A file, hub id, named or bundled set.")
@click.option("--model", help="Show it by this model's chat template, and count its tokens.")
@click.option("--row", type=int, default=1, show_default=True, help="Which row to show.")
@split_option
@json_option
def data(data: str, model: str | None, row: int, split: Any, as_json: bool, **options: Any) -> None:
    """Show what Mooring understands of a data set.

    Shapes of its rows, counts, lengths, fields that are not read, and one example with the special tokens around it.

    \b
    Examples:
      mooring data task.jsonl
      mooring data task.jsonl --model base/ --row 3
      mooring data answers.csv --prompt-field query --completion-field reply
      mooring data openfunctions --split test --json
    """
    found = mooring.preview_data(data, model=model, row=row, split=split, **fields_given(options))
    render.preview(found, as_json=as_json)


@verb(top, "doctor")
@json_option
def doctor(as_json: bool) -> None:
    """Show what is installed and works, and how to get the rest.

    Imports every package, and asks for the GPU, the sandbox, the hub and the disk. Exits with 2 if something is broken
    that Mooring does not work without.

    \b
    Examples:
      mooring doctor
      mooring doctor --json
    """
    found = mooring.doctor()
    render.findings(found, as_json=as_json)
    if any(each.needed and each.status != "ok" for each in found):
        sys.exit(BAD_INPUT)


@verb(top, "plugins")
@click.option("--plugin", "references", multiple=True, help="Load this one too: module:object or file.py:object.")
@json_option
def plugins(references: tuple[str, ...], as_json: bool) -> None:
    """List judges, merge methods, metrics, prompt sets, attacks and engines.

    Those that are built in, and those of plug-ins: of installed packages, and of --plugin. Exits with 2 if one cannot
    be loaded.

    \b
    Examples:
      mooring plugins
      mooring plugins --plugin my_judge.py:JUDGE --json
    """
    from mooring.plugins import load

    for reference in references:
        load(reference)
    found = mooring.list_plugins()
    render.plugins(found, as_json=as_json)
    if any(each.error for each in found):
        sys.exit(BAD_INPUT)


@verb(top, "gate")
@click.argument("run", help="A finished run folder.")
@click.option("--junit", metavar="FILE", help="Also write the verdict as JUnit XML, a test case per check.")
@click.option("--github-summary", is_flag=True, help="Also append it to the summary of the GitHub Actions job.")
@json_option
def gate(run: str, junit: str | None, github_summary: bool, as_json: bool) -> None:
    """Let a pipeline go on only if a run's verdict is to ship.

    Exits with 0 if it is, and with 3 if it is not to ship or the evidence does not suffice. See docs/ci.md.

    \b
    Examples:
      mooring gate runs/mine
      mooring gate runs/mine --json
      mooring gate runs/mine --junit mooring.xml --github-summary
    """
    summary = os.environ.get("GITHUB_STEP_SUMMARY") if github_summary else None
    if github_summary and not summary:
        message = "--github-summary: GITHUB_STEP_SUMMARY is not set"
        raise UserError(message, "run it in a GitHub Actions job, or leave it out", code="usage.no_github_summary")
    verdict = mooring.gate(run, junit=junit, summary=summary)
    if as_json:
        render.result(verdict, "", as_json=True)
    else:
        render.verdict(verdict)
    if not verdict.passed:
        sys.exit(OVER_BOUND)


@verb(top, "report")
@click.argument("run", help="A run folder.")
@click.option("--redact", is_flag=True, help="Leave out harmful prompts and their answers; into report-redacted.")
@json_option
def report(run: str, redact: bool, as_json: bool) -> None:
    """Write a run's report again from its results.json.

    \b
    Examples:
      mooring report runs/quickstart
      mooring report runs/quickstart --redact
    """
    page = mooring.report(run, redact=redact) / "index.html"
    render.result({"report": str(page)}, f"The report is {page}.", as_json=as_json)


@verb(top, "serve")
@click.argument("run", help="A run folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on: of this machine alone.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to serve on; by default a free one.")
@click.option("--browser/--no-browser", default=True, help="Open the page in a browser.")
def serve(run: str, host: str, port: int, browser: bool) -> None:
    """Watch a run in a browser: its progress, the curve as it fills, and the report when it is done.

    The page is served on this machine alone, until Ctrl-C; the run is neither changed nor stopped.

    \b
    Examples:
      mooring serve runs/mine
      mooring serve runs/mine --port 8080 --no-browser
    """
    server = mooring.serve(run, host=host, port=port)
    click.echo(f"mooring: the run is at {server.url}", err=True)
    click.echo("mooring: Ctrl-C ends this; the run goes on", err=True)
    serve_until_stopped(server, browser=browser)


@verb(top, "export")
@click.argument("run", help="A run folder.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["inspect", "lm-eval", "harmbench", "csv", "parquet", "every-eval-ever"]),
    required=True,
    help="inspect: logs; lm-eval: samples; harmbench: completions; csv, parquet: tables; every-eval-ever: scores.",
)
@click.option("--out", "-o", required=True, help="Folder for the files.")
@json_option
def export(run: str, form: Any, out: str, as_json: bool) -> None:
    """Write a run's answers and scores for other tools.

    Of every model and set, both halves; docs/formats.md describes the files.

    \b
    Examples:
      mooring export runs/mine --format inspect --out logs && inspect view --log-dir logs
      mooring export runs/mine --format csv -o tables
      mooring export runs/mine --format harmbench -o completions
    """
    files = mooring.export_run(run, format=form, out=out)
    text = f"{len(files)} files are in {out}."
    render.result({"files": [str(path) for path in files]}, text, as_json=as_json)


@verb(top, "paper")
@click.argument("runs", help="A folder of run folders.")
@click.option("--out", required=True, help="Folder for the tables and figures.")
@click.option("--published", help="Published numbers to show beside the measured ones: CSV or YAML.")
@click.option("--main", help="The base model of Tables 1 and 2; defaults to that of most runs.")
@json_option
def paper(runs: str, out: str, published: str | None, main: str | None, as_json: bool) -> None:
    """Write the paper's tables and figures over many runs.

    \b
    Examples:
      mooring paper runs --out tables
      mooring paper runs --out tables --published published.csv
    """
    tables = mooring.paper(runs, out, published=published, main=main)
    for note in tables.notes:
        click.echo(f"mooring: {note}", err=True)
    page, count = Path(tables.folder) / "paper.md", tables.runs
    facts = {"paper": str(page), "runs": count, "notes": list(tables.notes)}
    text = f"{count} run{'' if count == 1 else 's'}: the tables and figures are in {page}."
    render.result(facts, text, as_json=as_json)


@verb(top, "inspect")
@base_argument
@tuned_argument
@click.option("--lam", type=float, default=0.5, show_default=True, help="λ at which to predict what methods do.")
@click.option("--quick", is_flag=True, help="Skip the effective ranks, half of the work.")
@click.option("--heatmap", help="Draw the change by layer and module to this PNG.")
@json_option
def inspect(base: str, tuned: str, lam: float, quick: bool, heatmap: str | None, as_json: bool) -> None:
    """Show whether two models can be merged, and what changed.

    Also predicts what each merging method would do, and what a merge costs. Exits with 2 if they cannot be merged.

    \b
    Examples:
      mooring inspect base/ tuned/
      mooring inspect base/ tuned/ --heatmap change.png
      mooring inspect meta-llama/Llama-3.1-8B-Instruct adapter/ --lam 0.6 --json
    """
    with render.bar("inspect", resumes=False) as on_event:
        inspection = mooring.inspect(base, tuned, lam=lam, quick=quick, heatmap=heatmap, on_event=on_event)
    render.inspection(inspection, as_json=as_json)
    if heatmap and not as_json and inspection.whole().relative:
        click.echo(f"The heat map is in {heatmap}.")
    if inspection.problems:
        sys.exit(BAD_INPUT)


def _start(recipe: Any, track: Any, dry_run: bool, as_json: bool) -> None:
    """Run a recipe with progress bars, or print its plan."""
    if dry_run:
        return render.forecast(mooring.plan(recipe), as_json=as_json)
    from mooring.cli.watch import watch
    from mooring.pipeline.run import Run
    from mooring.pipeline.trackers import tracking

    run = Run(recipe)
    with watch(run) as on_event, tracking(run, track, on_event) as (relay, end):
        outcome = run.execute(relay)
        end(outcome)
    render.outcome(outcome, as_json=as_json)
    if not outcome.acceptable:
        sys.exit(OVER_BOUND)
