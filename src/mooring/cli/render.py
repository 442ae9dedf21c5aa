"""What commands print: progress, and results as text or JSON."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mooring.cli import INTERRUPTED
from mooring.cli.terminal import Screen
from mooring.events import Event, OnEvent
from mooring.files import gibibytes
from mooring.inference.logs import own_stderr
from mooring.merge_point import MergePoint
from mooring.printable import as_json, one_line
from mooring.records import LogitComparison, MergeCheck

if TYPE_CHECKING:
    from mooring.merging.inspect import Inspection
    from mooring.pipeline.compare_evals import EvalDifference
    from mooring.pipeline.doctor import Finding
    from mooring.pipeline.extensions import PluginInfo
    from mooring.pipeline.forecast import Forecast
    from mooring.pipeline.preview import DataPreview
    from mooring.pipeline.rejudge import Rejudged
    from mooring.pipeline.run import Outcome
    from mooring.pipeline.verify_served import ServedVerdict
    from mooring.records import RunVerdict, Score
    from mooring.reporting.judge_error import JudgeError


_REDRAW = 0.05
"""Minimum number of seconds between two updates of a bar."""
_DECISIONS = 6
"""Maximum number of a merge's decisions that are shown."""
Tick = Callable[..., None]
"""Called with (done, total, note, tokens generated)."""


def console() -> Screen:
    """Standard output, without line breaks of its own."""
    return Screen(soft_wrap=True)


def _print_json(value: Any) -> None:
    print(as_json(_plain(value), indent=1, default=str))


def _plain(value: Any) -> Any:
    """A result as plain JSON values."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def result(value: Any, text: str, *, as_json: bool) -> None:
    """Print a result: as JSON, or a line about it."""
    if as_json:
        _print_json(value)
    else:
        print(text)


# --- Progress ---


def progress_bars(out: Console) -> Progress:
    """Bars of tasks that have a `note`."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=out,
        transient=True,
    )
    progress.disable = not out.is_terminal  # it would write an empty line into a log
    return progress


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say that the same command continues, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("mooring: stopped; the same command continues from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def bar(label: str, *, resumes: bool = True) -> Iterator[OnEvent]:
    """A progress bar for one verb, on a terminal; a verb that resumes says so on Ctrl-C."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(resumable() if resumes else contextlib.nullcontext())
        stderr = stack.enter_context(own_stderr())
        progress = stack.enter_context(progress_bars(Screen(stderr)))
        tick = ticking(progress, label)

        def on_event(event: Event) -> None:
            if event.kind == "progress":
                scale = 2**20 if event.unit == "bytes" else 1
                note = note_of(event) or ("MiB" if scale > 1 else "")
                tick(event.done // scale, event.total // scale, note, event.tokens)
            elif event.message:
                kind = "warning: " * (event.kind == "warning")
                progress.console.print(f"mooring: {kind}{escape(one_line(event.message))}", soft_wrap=True)

        yield on_event


def ticking(progress: Progress, label: str) -> Tick:
    """What moves a bar; it shows tokens per second if tokens are counted."""
    task = progress.add_task(escape(label), total=None, note="")
    started = last = time.monotonic()

    def tick(done: int, total: int, note: str = "", tokens: int = 0) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REDRAW and done < total:  # a merge emits an event per slice
            return
        last = now
        if tokens:
            note = f"{tokens / max(now - started, 1e-9):.0f} tokens/s"
        progress.update(task, completed=done, total=total, note=escape(note))

    return tick


def note_of(event: "Event") -> str:
    """What stands beside the bar of a step: its message, or its numbers (`loss 1.234`)."""
    return event.message or ", ".join(f"{name} {value:.3f}" for name, value in event.metrics.items())


# --- Results ---


def outcome(done: "Outcome", *, as_json: bool = False) -> None:
    """The verdict of a run, its table, the choice of λ, and where the files are."""
    if as_json:
        return _print_json(done)
    if done.choice is None:
        return _compared(done)
    from mooring.reporting.render import as_terminal
    from mooring.reporting.results import load
    from mooring.reporting.tables import module_test_table, summary_table, tried_table

    out = console()
    results = load(done.report)
    if not done.worked:
        out.print(f"{escape(str(done.folder))} is finished: nothing was left to do.")
    out.print()
    verdict(results.verdict)
    out.print()
    for table in (summary_table(results), tried_table(results), module_test_table(results)):
        if table:
            out.print(as_terminal(table))
    out.print()
    out.print(escape(f"How λ was chosen: {done.choice.reason}"))
    if done.choice.sensitivity:
        out.print(f"[dim]{escape(done.choice.sensitivity)}[/dim]")
    if results.baselines:
        out.print(escape(results.baselines.sentence))
    if results.forgetting:
        out.print(escape(results.forgetting.sentence))
    for note in results.notes:
        out.print(f"[dim]{escape(note)}[/dim]")
    out.print()
    out.print(f"Model:  {escape(str(done.model))}")
    out.print(f"Report: {escape(str(done.report / 'index.html'))}")
    if not done.choice.within:
        out.print(f"The model that was written is the nearest to the bound, {escape(done.choice.point.label)}.")


_STYLES = {"ship": "bold green", "do_not_ship": "bold red", "not_enough_evidence": "bold yellow"}


def verdict(found: "RunVerdict") -> None:
    """The verdict of a run: the decision, why, and what it does not cover."""
    out = console()
    out.print(f"[{_STYLES[found.decision]}]{found.words.upper()}[/] {escape(found.sentence)}")
    for caveat in found.caveats:
        out.print(f"[dim]{escape(caveat)}[/dim]")


def preview(found: "DataPreview", *, as_json: bool) -> None:
    """What was understood of a data set."""
    if as_json:
        return _print_json(found)
    out = console()
    out.print(f"[bold]{found.rows:,} rows[/bold], {found.responses:,} with a response: {escape(found.ref)}")
    for title, counts in (("turns", found.shapes), ("category", found.categories)):
        if counts:
            _print_table([title, "rows"], [[name, f"{count:,}"] for name, count in counts.items()], numeric=(1,))
    lengths = {"prompt": found.prompt, "response": found.response}
    rows = [[name, *(f"{n:,}" for n in (e.median, e.p95, e.longest))] for name, e in lengths.items() if e]
    _print_table([f"length in {found.unit}", "median", "95 %", "longest"], rows, numeric=(1, 2, 3))
    for note in found.notes:
        out.print(f"[yellow]note:[/yellow] {escape(note)}")
    out.print(
        f"[dim]{escape(found.origin)}, as {'the model sees it' if found.unit == 'tokens' else 'it was read'}:[/dim]"
    )
    out.print(escape(found.example))


def findings(found: "Sequence[Finding]", *, as_json: bool) -> None:
    """What the doctor found, a line each, and below it how to get what is missing."""
    if as_json:
        return _print_json(found)
    out, marks = console(), {"ok": "[green]✓[/green]", "missing": "[dim]–[/dim]", "broken": "[red]✗[/red]"}
    width = max(len(each.name) for each in found)
    for each in found:
        out.print(f"{marks[each.status]} {escape(each.name.ljust(width))}  {escape(each.detail)}")
        if each.fix:
            out.print(f"  {' ' * width}  [dim]{escape(each.fix)}[/dim]")


def plugins(found: "Sequence[PluginInfo]", *, as_json: bool) -> None:
    """The items of every registry: those that are built in in a line, plug-ins with where they are from."""
    if as_json:
        return _print_json(found)
    out = console()
    for group in dict.fromkeys(each.group for each in found):
        items = [each for each in found if each.group == group]
        built_in = [each.name for each in items if each.source == "built-in"]
        out.print(f"[bold]{group.replace('_', ' ')}[/bold]: {escape(', '.join(built_in))}")
        for each in items:
            if each.source != "built-in":
                mark = "[red]✗[/red]" if each.error else "[green]✓[/green]"
                out.print(f"  {mark} {escape(each.name)}  [dim]{escape(each.source)}[/dim]")
                if each.error:
                    out.print(f"    {escape(each.error)}")


def _compared(done: "Outcome") -> None:
    """The tables of a comparison, and where its files are."""
    from mooring.reporting.comparison.records import load
    from mooring.reporting.comparison.tables import groups_of, method_table, series_table, summary
    from mooring.reporting.render import as_terminal

    out = console()
    found = load(done.report)
    if not done.worked:
        out.print(f"{escape(str(done.folder))} is finished: nothing was left to do.")
    out.print()
    for table in (method_table(found, groups_of(found)).to_table({}), series_table(found)):
        out.print(as_terminal(table))
    out.print()
    out.print(escape(summary(found)))
    for note in found.notes:
        out.print(f"[dim]{escape(note)}[/dim]")
    out.print()
    out.print(f"Report: {escape(str(done.report / 'index.html'))}")
    for caveat in dict.fromkeys(caveat for each in done.verdicts.values() for caveat in each.caveats):
        out.print(f"[dim]{escape(caveat)}[/dim]")
    if not done.acceptable:
        out.print("[bold red]No method has a λ within the bound that can be shipped.[/bold red]")


def scores(found: Mapping[str, "Score"], *, as_json: bool) -> None:
    """Scores with their intervals, methods and counts."""
    if as_json:
        return _print_json(found)
    from mooring.text import score_number

    rows: list[list[Any]] = []
    for name, score in found.items():
        counts = ", ".join(f"{key} {value:g}" for key, value in score.details.items())
        rows.append([name, score_number(score), score.n, score.method, counts])
    _print_table(["score", "value [95 % interval]", "n", "by", "counts"], rows, numeric=(1, 2))


def eval_differences(found: Sequence["EvalDifference"], *, as_json: bool) -> None:
    """Two evaluations beside each other, a score per row."""
    if as_json:
        return _print_json(found)
    from mooring.text import Number

    rows: list[list[Any]] = []
    for each in found:
        rate = all(0 <= value <= 1 for value in (each.first, each.second))
        first, second = Number(value=each.first, rate=rate), Number(value=each.second, rate=rate)
        change = Number(value=each.difference, low=each.low, high=each.high, rate=rate, signed=True)
        rows.append([each.metric, first, second, change, f"{each.p:.3g}", each.method, each.n])
    heads = ["score", "first", "second", "second − first [95 % interval]", "p", "test", "samples"]
    _print_table(heads, rows, numeric=(1, 2, 3, 4, 6))
    out = console()
    if left_out := max(each.left_out for each in found):
        out.print(f"[yellow]note:[/yellow] up to {left_out} samples without a score in both files are left out")
    if len(found) > 1:
        out.print(f"[dim]The p-values are not corrected for there being {len(found)} scores.[/dim]")


def judge_error(found: "JudgeError", *, as_json: bool) -> None:
    """What labels say of a run's judge: its error, corrected rates, and what is missing."""
    if as_json:
        return _print_json(found)
    from mooring.reporting.judge_error import NOTE, annotator_table, corrected_tables
    from mooring.reporting.render import as_terminal

    out = console()
    out.print(escape(found.sentence))
    for table in (*corrected_tables(found), annotator_table(found)):
        if table:
            out.print(as_terminal(table))
    out.print(f"[dim]{escape(NOTE)}[/dim]")
    for warning in found.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = ()) -> None:
    """Print a table without breaking words, wider than the terminal if necessary."""
    from mooring.reporting.render import as_terminal
    from mooring.reporting.tables import Column, Table

    heads = [Column(heading, numeric=place in numeric) for place, heading in enumerate(headings)]
    table = as_terminal(Table("", heads, rows), narrow=False)
    out = console()
    wide = out.options.update(width=10_000)
    for column in table.columns:
        sizes = [out.measure(cell, options=wide) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    out.width = max(out.width, out.measure(table, options=wide).minimum)
    out.print(table)


def rejudged(found: Sequence["Rejudged"], *, as_json: bool) -> None:
    """The scores of other judges, and how far they agree with the run's own."""
    if as_json:
        return _print_json(found)
    from mooring.text import Number, score_number

    rows: list[list[Any]] = []
    for each in found:
        agreement: list[Any] = ["", ""]
        if each.agreement:
            agreement = [Number(value=each.agreement.kappa, digits=2), len(set(each.agreement.disagreements))]
        for name, score in each.scores.items():
            missed = f"{score.details['miss']:g}"
            start = (each.judge, each.point.label, each.split, name)
            rows.append([*start, score_number(score), score.n, missed, *agreement])
    headings = ("judge", "model", "split", "score", "value [95 % interval]", "n", "missed", "κ", "disagree")
    _print_table(headings, rows, numeric=(4, 5, 6, 7, 8))
    note = "κ and disagree: compared with the run's own judge; the run's choice and report stay as they are"
    console().print(f"[dim]{note}[/dim]")


def served(found: "ServedVerdict", *, as_json: bool) -> None:
    """The scores of a run's merged model and of the served one, their differences, and whether the verdict holds."""
    if as_json:
        return _print_json(found)
    from mooring.reporting.tables import difference_number
    from mooring.text import name_of, score_number

    rows: list[list[Any]] = []
    for each in found.measures:
        difference = difference_number(each.difference, each.name)
        turned = each.difference and each.difference.p is not None
        flips = [each.difference.worse, each.difference.better] if each.difference and turned else ["", ""]
        rows.append([name_of(each.name), score_number(each.merged), score_number(each.served), difference, *flips])
    heads = ["score", f"merged ({found.point.label})", "served", "difference [95 % interval]", "worse", "better"]
    _print_table(heads, rows, numeric=(1, 2, 3, 4, 5))
    out = console()
    style, words = ("green", "The verdict holds") if found.holds else ("bold red", "The verdict does not hold")
    out.print(f"[{style}]{words}[/{style}] for {escape(found.model)}. {escape(found.reason)}")


def inspection(found: "Inspection", *, as_json: bool = False) -> None:
    """Whether two models can be merged, what changed, what each method would do, and what a merge costs."""
    if as_json:
        return _print_json(found)
    out, facts = console(), found.to_dict()
    pair = escape(f"{found.tuned} ({found.kind}) into {found.base}")
    out.print(f"[bold]{escape(facts['verdict'])}[/bold]: {pair}")
    for problem in found.problems:
        out.print(f"[red]problem:[/red] {escape(problem)}")
    for warning in found.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for name, decision in found.decisions.items():
        out.print(f"{escape(name)}: {escape(decision)}")
    if not facts["changed"]:
        return

    def percent(share: float | None) -> str:
        return "from zero" if share is None else f"{100 * share:.3g} %" if share else "unchanged"

    def degrees(angle: float | None) -> str:
        return f"{angle:.3g}°" if angle else ""

    whole = facts["whole"]
    out.print(
        f"{facts['changed']} of {facts['tensors']} tensors changed, by {percent(whole['relative_change'])} of the "
        f"base's norm; {whole['entries_changed']:.1%} of the entries; "
        f"largest angle {degrees(whole['largest_angle_degrees'])}"
    )
    for title, groups in (("module", facts["by_module"]), ("layer", facts["by_layer"])):
        rows: list[list[Any]] = []
        most = max((group["relative_change"] or 0 for group in groups.values()), default=0) or 1
        for name, group in groups.items():
            change, directions = group["relative_change"], group["directions"]
            bar = "█" * round(12 * (1 if change is None else change / most))
            entries = f"{group['entries_changed']:.1%}" if group["entries_changed"] else ""
            row = (percent(change), bar, degrees(group["largest_angle_degrees"]), entries)
            rows.append([name.removesuffix(".weight"), *row, "" if directions is None else directions])
        _print_table([title, "change", "", "angle", "entries", "directions"], rows, numeric=(1, 3, 4, 5))
    out.print("[dim]angle: the largest; directions: the most that a weight's change needs for 90 % of its square[/dim]")
    rows = []
    for method in found.methods:
        sizes = [f"{d:.2f}" if d is not None else "" for d in (method.from_base, method.from_tuned)]
        rows.append([", ".join(method.methods), *sizes, method.remark])
    _print_table([f"at {MergePoint(found.lam).label}", "from base", "from tuned", ""], rows, numeric=(1, 2))
    out.print("[dim]distances in ‖δ‖, the norm of the whole change; expected ones for methods that are random[/dim]")
    if found.cost:
        cost = facts["cost"]
        took = ""
        if cost["seconds"] is not None:
            took = f", and takes about {max(cost['seconds'], 0.1):.1f} s per pass at the speed of this reading"
        out.print()
        out.print(f"A merge reads {cost['read']}, writes {cost['write']} ({cost['free']} free here){took}.")
        out.print(f"It holds about {cost['memory']} in memory.")


def forecast(found: "Forecast", *, as_json: bool = False) -> None:
    """What a run would do and need."""
    if as_json:
        return _print_json(found)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for stage, what in found.stages:
        table.add_row(escape(stage), escape(what))
    for name, fact in found.facts.items():
        table.add_row(escape(name), escape(fact))
    unknown = "not known before the base is on this machine"
    table.add_row("disk", unknown if found.disk is None else f"{gibibytes(found.disk)} at most")
    table.add_row("memory", unknown if found.memory is None else f"about {gibibytes(found.memory)}")
    console().print(table)


def merged(folder: Path, names: Sequence[str], *, url: str | None = None, as_json: bool) -> None:
    """Where the merged model is, and what was decided about single tensors."""
    from mooring import bounded
    from mooring.models import MANIFEST, read_json

    folders = [folder / name for name in names] or [folder]
    if as_json:
        manifests = [read_json(each / MANIFEST, bounded.MANIFEST) for each in folders]
        return _print_json({"folder": str(folder), "models": manifests} | ({"url": url} if url else {}))
    out = console()
    record = read_json(folders[0] / MANIFEST, bounded.MANIFEST)
    for note in record["notes"]:
        out.print(f"[yellow]note:[/yellow] {escape(note)}")
    decisions = record["decisions"]
    for name, decision in list(decisions.items())[:_DECISIONS]:
        out.print(f"[dim]{escape(name)}: {escape(decision)}[/dim]")
    if len(decisions) > _DECISIONS:
        out.print(f"[dim]… and {len(decisions) - _DECISIONS} more such decisions, all in {MANIFEST}[/dim]")
    if names:
        out.print(f"The merged models are in {escape(str(folder))}: {', '.join(names)}.")
    else:
        out.print(f"The merged model is in {escape(str(folder))}.")
    for each in folders:
        if check := read_json(each / MANIFEST, bounded.MANIFEST).get("check"):
            logits = [LogitComparison(**compared) for compared in check.pop("logits")]
            out.print(escape(MergeCheck(**check, logits=logits).sentence))
        if (modelfile := each / "Modelfile").is_file():
            out.print(f"Beside it as GGUF; Ollama takes it by: ollama create NAME -f {escape(str(modelfile))}")
    if url:
        out.print(f"It is on the hub: {escape(url)}")
