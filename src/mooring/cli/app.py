"""Each verb: its options, its help with examples, and one call."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import mooring
from mooring.cli import render
from mooring.cli.compare import compare
from mooring.cli.merge import merge
from mooring.cli.options import (
    SYSTEM,
    Base,
    Batch,
    Bound,
    Budget,
    Confidence,
    Device,
    Dtype,
    Margin,
    Policy,
    Search,
    Seed,
    System,
    Tuned,
    chosen,
    floats,
    select,
    words,
)
from mooring.cli.render import watch
from mooring.cli.score import generate, score

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"mooring {mooring.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep a fine-tuned language model as safe as the aligned model it came from.

    \b
    Examples:
      mooring quickstart
      mooring safeguard meta-llama/Llama-3.1-8B-Instruct ./tuned --task task.jsonl --out runs/mine
      mooring run recipes/quickstart.yaml
      mooring merge BASE TUNED --lam 0.6 --out merged
    """


@app.command()
def safeguard(
    base: Base,
    tuned: Tuned,
    out: Annotated[Path, typer.Option(help="Run folder; a stopped run goes on in it.")],
    task: Annotated[str | None, typer.Option(help="Prompts with right answers: file, hub id or bundled:tools.")] = None,
    safety: Annotated[
        str, typer.Option(help="Requests to refuse: advbench,hex-phi, a file, a hub id or bundled:harmful.")
    ] = "bundled:harmful",
    over_refusal: Annotated[
        str, typer.Option(help="Harmless requests that sound harmful: xstest, or-bench-hard, a file.")
    ] = "bundled:lookalikes",
    judge: Annotated[
        str, typer.Option(help="Safety judges, the deciding one first: wildguard,rules (docs/judges.md).")
    ] = "rules",
    method: Annotated[str, typer.Option(help="Merging rule.")] = "linear",
    lambdas: Annotated[str, typer.Option(help="λ to try; λ is the weight of the tuned model.")] = "0.2,0.4,0.6,0.8",
    policy: Policy = None,
    margin: Margin = None,
    bound: Bound = None,
    confidence: Confidence = None,
    search: Search = None,
    budget: Budget = None,
    metric: Annotated[
        str | None, typer.Option(help="Task metrics, the deciding one first: call_match,bert_score,response_loss.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many prompts in each half of a set.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 512,
    system: System = SYSTEM,
    seed: Seed = 42,
    batch_size: Batch = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Merge TUNED back towards BASE over λ, measure, choose λ, write the model and a report.

    \b
    Examples:
      mooring safeguard base/ tuned/ --task task.jsonl --out runs/mine
      mooring safeguard meta-llama/Llama-3.1-8B-Instruct adapter/ --safety advbench --out runs/mine
      mooring safeguard base/ tuned/ --lambdas 0.3,0.5,0.7 --dry-run --out runs/mine
    """
    recipe = mooring.api.safeguard_recipe(
        base,
        tuned,
        out=out,
        task=task,
        safety=words(safety),
        over_refusal=words(over_refusal),
        judges=words(judge),
        method=method,
        lambdas=floats(lambdas, "--lambdas"),
        metrics=words(metric) or None,
        limit=limit,
        max_tokens=max_tokens,
        system=system,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        **chosen(policy, margin, bound, confidence, search, budget),
    )
    start(recipe, dry_run)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as YAML.")],
    out: Annotated[Path | None, typer.Option(help="Run folder, instead of the recipe's.")] = None,
    policy: Policy = None,
    margin: Margin = None,
    bound: Bound = None,
    confidence: Confidence = None,
    search: Search = None,
    budget: Budget = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Do a whole recipe: tune, merge, generate, score, select, report.

    Stopped at any point and started again, it goes on from what is done. How λ is chosen can be said here, in place of
    the recipe's `select` section.

    \b
    Examples:
      mooring run recipes/quickstart.yaml
      mooring run mine.yaml --margin 0.05 --confidence 0.9
      mooring run mine.yaml --dry-run
    """
    loaded = mooring.Recipe.load(recipe)
    asked = mooring.api.with_selecting(loaded, **chosen(policy, margin, bound, confidence, search, budget))
    start(asked.model_copy(update={"out": str(out)}) if out else asked, dry_run)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/quickstart"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
) -> None:
    """Show the effect on the bundled model, offline: seven to twelve minutes on two CPU cores.

    \b
    Examples:
      mooring quickstart
      mooring quickstart --out /tmp/first-look
    """
    run(mooring.api.bundled_recipe("quickstart"), out, dry_run=dry_run)


@app.command()
def tune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model to tune: folder, .gguf file or hub id.")],
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Examples: files, hub ids; FILE#500 takes 500.")],
    out: Annotated[Path, typer.Option(help="Folder for the LoRA adapter.")],
    r: Annotated[int, typer.Option(help="Rank of the LoRA update.")] = 8,
    lora_alpha: Annotated[float, typer.Option(help="LoRA's α: the update is scaled by α / r.")] = 16,
    lora_dropout: Annotated[float, typer.Option(help="Dropout on the input of the LoRA layers.")] = 0.0,
    target_modules: Annotated[
        list[str] | None, typer.Option(help="Modules that get an update; repeat for several.  [default: all-linear]")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    lr_scheduler_type: Annotated[
        Literal["cosine", "linear", "constant"], typer.Option(help="Learning rate schedule after the warm-up.")
    ] = "cosine",
    warmup_ratio: Annotated[float, typer.Option(help="Fraction of the steps over which the rate rises.")] = 0.1,
    num_train_epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 3,
    max_steps: Annotated[int | None, typer.Option(help="Total number of steps; overrides the epochs.")] = None,
    per_device_train_batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 8,
    max_length: Annotated[int, typer.Option(help="Maximum length of an example, in tokens.")] = 1024,
    max_response_length: Annotated[
        int | None, typer.Option(help="Train on at most this many tokens of each response.")
    ] = None,
    val_set_size: Annotated[float, typer.Option(help="Fraction held out for the validation loss.")] = 0.1,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints to resume from.")] = 100,
    checkpoint_step: Annotated[
        int | None, typer.Option(help="Keep the adapter after this many steps of the whole schedule.")
    ] = None,
    system: System = SYSTEM,
    seed: Seed = 42,
) -> None:
    """Tune a LoRA adapter on the responses of DATA; the defaults are the paper's.

    DATA is JSONL, JSON, CSV or Parquet with `messages`, `prompt`/`completion` or `instruction`/`input`/`output`.

    \b
    Examples:
      mooring tune base/ task.jsonl --out adapter
      mooring tune meta-llama/Llama-3.1-8B-Instruct tools.jsonl extra.csv#500 --num-train-epochs 1 --out adapter
    """
    with render.bar("tune") as tick:
        made = mooring.tune(
            base,
            data,
            out=out,
            system=system,
            seed=seed,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules="all-linear" if target_modules in (None, ["all-linear"]) else target_modules,
            learning_rate=learning_rate,
            lr_scheduler_type=lr_scheduler_type,
            warmup_ratio=warmup_ratio,
            num_train_epochs=num_train_epochs,
            max_steps=max_steps,
            per_device_train_batch_size=per_device_train_batch_size,
            max_length=max_length,
            max_response_length=max_response_length,
            val_set_size=val_set_size,
            save_steps=save_steps,
            checkpoint_step=checkpoint_step,
            on_event=lambda at: tick(at.done, at.total, f"loss {at.metrics['loss']:.3f}"),
        )
    typer.echo(f"The adapter is in {made}.")


app.command()(merge)


app.command()(generate)
app.command()(score)
app.command()(compare)


app.command()(select)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; with --paper, a folder of them.")],
    paper: Annotated[
        Path | None, typer.Option(help="Write the paper's tables and figures over all runs in RUN to this folder.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="With --paper: published numbers to stand beside them, CSV or YAML.")
    ] = None,
    main: Annotated[str | None, typer.Option(help="With --paper: the base model of Tables 1 and 2.")] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out harmful prompts and the answers; into report-redacted.")
    ] = False,
) -> None:
    """Write a run's report again from its results.json, or the paper's tables over many runs.

    \b
    Examples:
      mooring report runs/quickstart
      mooring report runs/quickstart --redact
      mooring report runs --paper tables
      mooring report runs --paper tables --published published.csv
    """
    if paper is None:
        if published or main:
            raise mooring.UserError("--published and --main: go with --paper", "name a folder for the tables")
        typer.echo(f"The report is {mooring.report(run, redact=redact) / 'index.html'}.")
        return
    made = mooring.api.paper(run, paper, published=published, main=main)
    for note in made.notes:
        typer.echo(f"mooring: {note}", err=True)
    typer.echo(
        f"{made.runs} run{'' if made.runs == 1 else 's'}: the tables and figures are in {made.folder / 'paper.md'}."
    )


@app.command()
def inspect(
    base: Base,
    tuned: Tuned,
    lam: Annotated[float, typer.Option(help="λ for which to say what each method would do.")] = 0.5,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the effective ranks, half of the work.")] = False,
    heatmap: Annotated[Path | None, typer.Option(help="Draw the change by layer and module as a PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say whether BASE and TUNED belong together, what changed between them, and what a merge would do and cost.

    \b
    Examples:
      mooring inspect base/ tuned/
      mooring inspect base/ tuned/ --heatmap change.png
      mooring inspect meta-llama/Llama-3.1-8B-Instruct adapter/ --lam 0.6 --json
    """
    with render.bar("inspect", resumes=False) as tick:
        found = mooring.inspect(
            base,
            tuned,
            lam=lam,
            quick=quick,
            heatmap=heatmap,
            on_event=lambda event: tick(event.done >> 20, event.total >> 20, "MiB"),
        )
    render.inspection(found, as_json=as_json)
    if heatmap and not as_json and found.whole().relative:
        typer.echo(f"The heat map is in {heatmap}.")


def start(recipe: Any, dry_run: bool) -> None:
    """Run a recipe with progress on the terminal, or print its plan."""
    if dry_run:
        from mooring.pipeline.forecast import forecast

        render.forecast(forecast(recipe))
        return
    from mooring.pipeline.run import Run

    run = Run(recipe)
    with watch(run) as on_event:
        outcome = run.execute(on_event)
    render.outcome(outcome)
    raise typer.Exit(0 if outcome.choice.within else 1)
