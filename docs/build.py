"""Build the docs that come from the code (recipes, commands, methods); with `--check`, say if they are current."""

import inspect
import sys
from pathlib import Path

import typer
import typer.main
from pydantic import BaseModel

from mooring.cli.app import app
from mooring.config import Generate, Judge, Merge, Recipe, Report, Score, Section, Select, Tune
from mooring.merging.methods import METHODS

DOCS = Path(__file__).parent
INTRO = """# Recipes

A recipe is one YAML file that describes a whole run. This page is built from `mooring/config.py` by `make docs`.

```yaml
name: mine
base: meta-llama/Llama-3.1-8B-Instruct
tune:
  data: [task-train.jsonl]
score:
  task: task-test.jsonl
  safety: advbench
```

`mooring run mine.yaml --dry-run` prints what it will do and need; `mooring run mine.yaml` does it. Unknown keys are
refused. Where both models exist already, `tuned: FOLDER` takes the place of `tune:`, and `mooring safeguard BASE TUNED`
needs no recipe at all.

## Data
A data set is a file (JSONL, JSON, CSV, TSV or Parquet; text forms may be gzipped), a hub id, a named set
([sets.md](sets.md): `advbench`, `hex-phi`, `openfunctions:train` …) or a bundled one (`bundled:harmful`,
`bundled:lookalikes`, `bundled:ordinary`, `bundled:tools`). `FILE#500` takes 500 rows, drawn by seed, and
`FILE#max500` all where there are no more; `FILE#500/lang` draws them evenly over a field. Rows are `messages`,
`prompt`/`completion`, or Alpaca's `instruction`/`input`/`output`.

## The paper's tasks
`task: reasoning`, `medical`, `code` or `tool` fills in the paper's data, prompts, metrics and judge (Farn et al.)
wherever a recipe says nothing; the plan and the report name every setting that departs. `recipes/paper/` has one recipe
for each of the paper's models and tasks. [measuring.md](measuring.md) says how each is measured.
"""


def recipes() -> str:
    """The fields of every section."""
    parts = [INTRO, _section("Top level", Recipe)]
    for name, model in (
        ("tune", Tune),
        ("merge", Merge),
        ("generate", Generate),
        ("score", Score),
        ("score.judges[]", Judge),
        ("select", Select),
        ("report", Report),
    ):
        parts.append(_section(f"`{name}`" + (" (and `align`)" if name == "tune" else ""), model))
    return "\n".join(parts)


def _section(title: str, model: type[Section]) -> str:
    lines = [f"## {title}", (model.__doc__ or "").strip(), "", "| key | default | what |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default())
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`"


def commands() -> str:
    """The help of every verb."""
    group = typer.main.get_command(app)
    parts = ["# Commands\n\nBuilt from the command line's own help by `make docs`.\n"]
    found = {"mooring": group}
    found |= {f"mooring {name}": command for name, command in sorted(group.commands.items())}  # type: ignore[attr-defined]
    for name, command in found.items():
        context = typer.Context(command, info_name=name, max_content_width=100, terminal_width=100)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


METHODS_INTRO = """# Methods

Built from `mooring/merging/methods.py` by `make docs`.

**λ is the weight of the tuned models, everywhere**: 0 is the base, 1 the tuned model. Other tools turn it round:
mergekit's `t` (SLERP) is λ with the base as `base_model`, its `lambda` (task vectors) is λ; SafeTune's α is 1−λ.

δᵢ = tunedᵢ − base. Arithmetic is in float32, or float64 where an input has it, and rounded once; λ is never rounded to
the type of a tensor. Dot products and norms are summed in float64. The same inputs and settings give the same bytes,
whatever the number of threads, the slices and the shards; what is drawn at random is a function of (seed, tensor,
position).

λ, weights, densities and the like are a number, a ramp over depth (`0.2..0.8`: from the first layer to the last), or
patterns of names to either (`--lam-for 'layers.{0-9}.mlp.*=0.3'`). A pattern matches a name from its start, or from
any dot, to its end; the first one that matches decides; `*` matches anything, `{0-9}` the integers, `{q,k,v}` one of
these. A pattern that matches no tensor is an error, since it is probably mistyped.

Every method except Model Stock also works on a single tuned model. If a tensor is an exception (no angle, a ratio
that was clamped, more vocabulary rows), the manifest `mooring.json` says so under `decisions`.
"""


def methods() -> str:
    """Every merging rule: a table, then each with its formula, source and mergekit's name for it."""
    lines = [METHODS_INTRO, "| method | θ = | tuned models | besides λ | reads its inputs |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        most = "" if method.most is None else f" to {method.most}"
        count = "1" if method.least == method.most else f"{method.least}{most or ' or more'}"
        options = ", ".join(f"`{option}`" for option in sorted(method.options)) or "–"
        times = {1: "once", 2: "twice"}.get(method.passes, f"up to {method.passes} times")
        lines.append(f"| [`{name}`](#{name}) | {method.formula} | {count} | {options} | {times} |")
    parts = ["\n".join(lines) + "\n"]
    for name, method in METHODS.items():
        defaults = []
        if "normalize" in method.options:
            defaults.append(f"`normalize` {'on' if method.options['normalize'] else 'off'}")
        if "rescale" in method.options:
            defaults.append(f"`rescale` `{method.options['rescale']}`")
        tail = f"\nDefaults: {', '.join(defaults)}.\n" if defaults else ""
        parts.append(f"## `{name}`\n{inspect.getdoc(method.plan)}\n{tail}")
    return "\n".join(parts)


def main() -> None:
    """Write the pages, or say which is out of date."""
    pages = {DOCS / "recipes.md": recipes(), DOCS / "cli.md": commands(), DOCS / "methods.md": methods()}
    stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
        return
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
