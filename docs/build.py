"""Build what comes from the code (recipes, commands, attacks, errors, options, …); `--check` fails if it is stale."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from cast import LOG, PICTURE, picture
from comparison_page import RESULTS as COMPARED
from comparison_page import comparison
from errors_page import SOURCE, errors
from judges_page import judges
from pydantic import BaseModel, BeforeValidator, TypeAdapter
from pydantic.fields import FieldInfo

import mooring
from mooring.attacks import TECHNIQUES
from mooring.cli.app import top
from mooring.config import (
    SECTIONS,
    VERBS,
    Judge,
    OneOf,
    Recipe,
    Report,
    SafetySampling,
    Section,
    TaskSampling,
    field_at,
    options_of,
)
from mooring.engines import ENGINES
from mooring.merge_methods import METHODS
from mooring.merging.methods import FORMULAS
from mooring.models.adapter_config import OPTIONS
from mooring.records import RunVerdict
from mooring.scoring.refusal import classifier

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
`prompt`/`completion`, or Alpaca's `instruction`/`input`/`output`; `context`, `system` and `history` beside them are
read too, and so are `tools` and an assistant's `tool_calls` where the model's chat template has a place for them.
Other names of fields are given by `data.prompt_field`, `data.completion_field` and `data.messages_field`
(`--prompt-field query`); `mooring data FILE` shows what is understood. One line names the fields that are not read.

## The paper's tasks
`task: reasoning`, `medical`, `code` or `tool` fills in the paper's data, prompts, metrics and judge (Farn et al.)
wherever a recipe says nothing; the plan and the report name every setting that departs. `recipes/paper/` has one recipe
for each of the paper's models and tasks. [measuring.md](measuring.md) says how each is measured.
"""


def recipes() -> str:
    """The fields of every section."""
    parts = [INTRO, _section("Top level", Recipe)]
    pages = {name: model for name, model in SECTIONS.items() if name != "judge"}
    pages |= {
        "generate.safety": SafetySampling,
        "generate.task": TaskSampling,
        "score.judges[]": Judge,
        "report": Report,
    }
    for name, model in sorted(pages.items(), key=lambda item: (list(pages).index(item[0].split(".")[0]), item[0])):
        parts.append(_section(f"`{name}`" + (" (and `align`)" if name == "tune" else ""), model))
    return "\n".join(parts)


def _section(title: str, model: type[Section]) -> str:
    lines = [f"## {title}", (model.__doc__ or "").strip(), "", "| key | default | what |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default())
        what = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {_cell(default)} | {_cell(what)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text as the cell of a table, which a bar would end."""
    return text.replace("|", r"\|")


def _default(value: object) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if value is None:
        return "–"
    if isinstance(value, tuple):
        value = [each.name if isinstance(each, Judge) else each for each in value]
    return f"`{value}`"


def commands() -> str:
    """The help of every verb."""
    parts = ["# Commands\n\nBuilt from the command line's own help by `make docs`.\n", EXIT_CODES]
    names: Any = {"help_option_names": ["-h", "--help"]}
    for name, command in [("mooring", top), *sorted(_verbs("mooring", top))]:
        context = click.Context(command, info_name=name, max_content_width=100, terminal_width=100, **names)
        parts.append(f"## {name}\n\n```\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _verbs(prefix: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from _verbs(f"{prefix} {name}", command)


EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | success |
| 1 | unexpected failure: a bug, with its traceback |
| 2 | usage or bad input, in one line; `inspect`: the pair cannot be merged |
| 3 | no λ is within the bound; the nearest one was taken (`safeguard`, `run`, `quickstart`, `select`) |
| 130 | interrupted by Ctrl-C; the same command continues |

With `--json` a verb prints one JSON document on standard output, and for codes 1 and 2 it is
`{"error": {"code": …, "message": …, "hint": …}}` ([errors.md](errors.md) lists the codes). Progress and warnings go to
standard error.
"""


# --- The types of the options, for type checkers and completion ---

OPTIONS_INTRO = '''"""The options that functions of `mooring` share with a recipe, as typed keywords.

Written by docs/build.py from the fields of `mooring.config` (`make docs`). Defaults and meanings: docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import torch

    from mooring.config import Judge

METHODS
JudgeLike: TypeAlias = "str | Mapping[str, Any] | Judge"
"""A judge by its name, or with its fields."""
Value: TypeAlias = float | tuple[float, ...]
"""A number, or a ramp from the first layer to the last."""
Lam: TypeAlias = Value | Mapping[str, Value]
"""λ: a number, a ramp, or patterns of tensors' names to either."""


class MethodOptions(TypedDict, total=False):
    """The options of a merge method besides λ (docs/methods.md), which are one value, or one per tuned model."""

    weights: Lam | Sequence[Lam] | None
    density: Lam | Sequence[Lam] | None
    gamma: Lam | Sequence[Lam] | None
    epsilon: Lam | Sequence[Lam] | None
    base_weight: Lam | None
    normalize: bool | None
    rescale: Literal["inverse", "l1", "none"] | None
    seed: int | None
    rank: Value | None
    threshold: Lam | None


class JobOptions(MethodOptions, total=False):
    """A merge: the method and its options."""

    plugins: str | Sequence[str]
    method: Method
    dtype: str | torch.dtype | None
    tokenizer: Literal["base", "larger"]
    unaligned: str | Path | None
    safety_adapter: str | Path | None


class OutputOptions(TypedDict, total=False):
    """What a merge writes, and how."""

    max_shard_size: int | str | None
    as_adapter: bool
    allow_nonfinite: bool
    qlora_base: Literal["given", "dequantized"]
    keep_quantization: bool
    threads: int | None
    on: str
    check: bool
    gguf: Literal["q8_0", "f16", "bf16"] | None


class MergeOptions(JobOptions, OutputOptions, total=False):
    """Options of `mooring.merge`."""


class TaskOptions(TypedDict, total=False):
    """How lm-evaluation-harness asks its tasks."""

    data: str | Path | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool
    fewshot_as_multiturn: bool
'''
PARENTS = {"lm_eval": "TaskOptions"}
_ONE_OF = {id(METHODS): "Method", id(ENGINES): "Engine"}
"""The types of fields that are one of a registry."""
_SETS = ("task", "safety", "over_refusal", "ordinary")


def option_types() -> str:
    """The source of `mooring/options.py`."""
    methods = "".join(f"    {json.dumps(name)},\n" for name in METHODS.built_in)
    types = f"BuiltInMethod: TypeAlias = Literal[\n{methods}]\n"
    types += 'Method: TypeAlias = BuiltInMethod | str\n"""A merge method; any other name is that of a plug-in."""\n'
    engines = ", ".join(map(json.dumps, ENGINES.built_in))
    types += f"BuiltInEngine: TypeAlias = Literal[{engines}]\n"
    types += 'Engine: TypeAlias = BuiltInEngine | str\n"""An engine; any other name is that of a plug-in."""\n'
    parts = [OPTIONS_INTRO.replace("METHODS\n", types)]
    for verb in VERBS:
        if verb in ("run", "merge"):
            continue  # `run` takes a recipe, and a merge's options have values per model and by depth
        name = "".join(word.title() for word in verb.split("_")) + "Options"
        lines = [
            f"class {name}({PARENTS.get(verb, 'TypedDict')}, total=False):",
            f'    """Options of `mooring.{verb}`."""',
            "",
        ]
        lines += [f"    {option}: {_typed(option, field_at(key))}" for option, key in options_of(verb).items()]
        parts.append("\n".join(lines) + "\n")
    return "\n\n".join(parts)


def _typed(name: str, field: FieldInfo) -> str:
    text = _annotation(field.annotation, "str | Path" if name in _SETS else "str")
    text = _ONE_OF.get(next((id(each.registry) for each in field.metadata if isinstance(each, OneOf)), 0), text)
    several = any(isinstance(each, BeforeValidator) for each in _metadata(field))
    return text.replace("Sequence[", f"{text[9 : text.index(']')]} | Sequence[", 1) if several else text


def _metadata(field: FieldInfo) -> list[object]:
    """What is attached to a field's annotation, or to a part of a union."""
    inner = [each for part in get_args(field.annotation) for each in getattr(part, "__metadata__", ())]
    return [*field.metadata, *inner]


def _annotation(kind: Any, text: str) -> str:
    if hasattr(kind, "__metadata__"):
        registry = next((id(each.registry) for each in kind.__metadata__ if isinstance(each, OneOf)), 0)
        return _ONE_OF.get(registry) or _annotation(kind.__origin__, text)
    if kind is str:
        return text
    if kind is type(None):
        return "None"
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(map(json.dumps, arguments))}]"
    if get_origin(kind) is tuple:
        return f"Sequence[{_annotation(arguments[0], text)}]"
    if arguments:
        return " | ".join(_annotation(argument, text) for argument in arguments)
    return "JudgeLike" if kind is Judge else str(kind.__name__)


METHODS_INTRO = """# Methods

Built from `mooring/merge_methods.py` by `make docs`.

**λ is the weight of the tuned models, everywhere**: 0 is the base, 1 the tuned model. In mergekit, λ is `t` (SLERP with
the base as `base_model`) or `lambda` (task vectors); SafeTune's α is 1−λ.

δᵢ = tunedᵢ − base. Arithmetic is in float32, or in float64 if an input is, and the result is rounded once; λ is never
rounded to the type of a tensor. Dot products and norms are summed in float64. The same inputs and options give the same
bytes for any number of threads, slices and shards; random numbers are a function of (seed, tensor, position).

λ, weights, densities, γ and ε are a number, a ramp over depth (`0.2..0.8`: from the first layer to the last), or
patterns of names to either (`--lam-for 'layers.{0-9}.mlp.*=0.3'`). A pattern matches a name from its start, or from
any dot, to its end, and the first one that matches decides; `*` matches anything, `{0-9}` the integers from 0 to 9, and
`{q,k,v}` one of these. A pattern that matches no tensor is an error, since it is probably mistyped.

Methods that drop entries of a change keep half of them unless `density` says otherwise (Breadcrumbs: 0.9, as in
mergekit's documentation): Yu et al. 2023 (arXiv:2311.03099) find that fine-tuned models hardly change at drop rates up
to 0.9, and the rate of Farn et al. is not published. mergekit's own default is 1, which drops nothing; a density of 1
is refused where the result would be that of task arithmetic.

[comparison.md](comparison.md) has several of them side by side on real models, each at its own strength within the same
bound.

Every method except Model Stock also works on a single tuned model. The manifest `mooring.json` lists exceptions
for single tensors (no angle, a clamped ratio, more vocabulary rows) under `decisions`.

Some methods take a third model: `--unaligned`, the pre-trained model that the base was aligned from, or
`--safety-adapter`, a model safer than the base. base − unaligned is the safety vector of their papers. In a run, λ = 0
is the base and λ = 1 the tuned model for every method. Methods that decompose matrices hold one tensor at a time, of
every model, in float32, and a square matrix of its shorter side in float64; the others hold a few slices. They
decompose on all cores, so that their last bits may differ with the number of threads that torch uses.
"""


def methods() -> str:
    """Every merging rule: a table, then each with its formula, source and mergekit's name for it."""
    lines = [METHODS_INTRO, "| method | θ = | tuned models | besides λ | reads its inputs |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        most = "" if method.most is None else f" to {method.most}"
        count = "1" if method.least == method.most else f"{method.least}{most or ' or more'}"
        options = ", ".join(f"`{option}`" for option in (*method.accepts, *sorted(method.options))) or "–"
        times = {1: "once", 2: "twice"}.get(method.passes, f"up to {method.passes} times")
        lines.append(f"| [`{name}`](#{name}) | {_cell(method.formula)} | {count} | {options} | {times} |")
    parts = ["\n".join(lines) + "\n"]
    for name, method in METHODS.items():
        shares = [option for option in ("density", "gamma", "epsilon") if option in method.options]
        defaults = [f"`{option}` {method.options[option]:g}" for option in shares]
        if "normalize" in method.options:
            defaults.append(f"`normalize` {'on' if method.options['normalize'] else 'off'}")
        if "rescale" in method.options:
            defaults.append(f"`rescale` `{method.options['rescale']}`")
        numbers = (option for option in ("rank", "threshold") if option in method.options)
        defaults += [f"`{option}` {method.options[option]}" for option in numbers]
        tail = f"\nDefaults: {', '.join(defaults)}.\n" if defaults else ""
        parts.append(f"## `{name}`\n{inspect.getdoc(FORMULAS[name])}\n{tail}")
    return "\n".join(parts)


LORA = """# LoRA adapters

Built from `mooring/models/adapter_config.py` by `make docs`. A test runs over every option of the installed PEFT's
`LoraConfig`, and fails when there is a new one.

The tuned model is what PEFT's forward pass computes. The change s·B·A is added in float32 and rounded once, after the
merge.

- **Names** may be those of the files, or those that transformers has in memory, of a vision-language model or of
  its text model. What torch.compile, FSDP and DDP put into them (`_orig_mod.`, `module.`), a second
  `base_model.model.` and the adapter's own name (`default`) are ignored.
- **Mixtures of experts**: factors of fused parameters (`target_parameters`, which PEFT sets by itself for
  `all-linear`), of single experts, as older versions made them, and of routers. The base may hold its experts
  together or one by one, whichever the adapter was tuned on; its layout is kept. One expert is multiplied out at a
  time.
- **A vocabulary that grew**: an adapter that holds the embedding or the head alone is refused, since no model can
  be loaded without the other's rows.
- **`--as-adapter`** works for all that is merged but DoRA, which scales the base's weights too.
- **Other types** than LoRA are refused; PEFT's `save_as_lora` converts most of them, and its `merge_and_unload`
  makes a whole model of any that changes weights.
"""


def lora() -> str:
    """The options of PEFT's LoRA by what they mean for a merge."""
    parts = [LORA]
    titles = {"merged": "Merged", "refused": "Refused", "no effect": "Without effect on the weights"}
    for kind, title in titles.items():
        columns = ("option", "why", "way out") if kind == "refused" else ("option", "what")
        parts.append(f"## {title}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for name, option in OPTIONS.items():
            if option.kind == kind:
                cells = (f"`{name}`", option.what, option.way_out)[: len(columns)]
                parts[-1] += f"\n| {' | '.join(cells)} |"
        parts[-1] += "\n"
    return "\n".join(parts)


def verdict_schema() -> str:
    """What `mooring gate --json` prints, as JSON Schema."""
    schema = TypeAdapter(RunVerdict).json_schema(mode="serialization")
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "The verdict of a run"}
    return json.dumps({**schema, **title}, ensure_ascii=False, indent=1) + "\n"


ATTACKS = """# Attacks

Built from the registry of `mooring/attacks/` by `make docs`.

A restored refusal should also hold when the request is put in another way. Each attack is such a way.
`score.attacks: [none, prefill:8, past_tense]` in a recipe, or `--attacks prefill:8,past_tense` for `run` and
`safeguard`, asks every model the harmful requests under each of them, on both splits; `none`, asking directly, is
always among them. `mooring generate` and `mooring score` take one attack.

- **Judged** is the request itself, not its disguise: the judge sees the original request and the answer. A judge with
  a model reads the whole answer, its prefill too; the refusal rules read the words that the model added.
- **Compared** are models under the same attack, in pairs on the same prompts. The report has tables of attacks and λ,
  and the page a selector.
- **Chosen**: with `select.bound_on: [none, prefill:8]` (`--bound-on`) λ must keep the bound under each attack named
  ([choosing.md](choosing.md#several-bounds)).
- **Several answers** to one prompt resemble each other. The rate of all, `asr+best_of_n:10`, has an interval for
  clusters (Wilson's with the effective number of answers: Korn & Graubard 1998, Franco et al. 2019), which covers the
  true rate in 92 to 96 % of simulations, where one of independent answers covers it in 58 to 92 %
  (`python benchmarks/several_bounds.py`);
  `asr_worst+best_of_n:10` counts the prompts to which any answer is harmful, and is what `bound_on` bounds.
- **Seeded**: what is asked is a function of the prompt, the attack and the recipe's seed, so that all models are asked
  alike, and again in the same way.
- **Prefill** works with the engines transformers and vllm, and with servers of vLLM and SGLang; other servers are
  refused, since they may ignore it. Where a chat template opens the model's thoughts, an answer cannot be prefilled.
- None searches for an attack that works on a given model: who does will find more than these show.

"""


def attacks() -> str:
    """Every attack: a table, with its option and source."""
    lines = [ATTACKS + "| attack | what | option | source |", "|---|---|---|---|"]
    lines.append("| `none` | The request as it is. | – | – |")
    for name, technique in TECHNIQUES.items():
        option = technique.option.what if technique.option else "–"
        lines.append(f"| `{name}` | {_cell(technique.what)} | {option} | {technique.source} |")
    return "\n".join(lines) + "\n"


API_TYPES = """# Python: types and options

The public types of `mooring`, from their docstrings: what the [functions](api.md) return and raise, and the options
that they share with recipes. Every result has `to_dict()` and `to_pandas()`.
"""


def api_types() -> str:
    """The public types, each as a directive of mkdocstrings."""
    functions = {*mooring.api.__all__, "api"}
    public = [name for name in mooring.__all__ if name not in functions and not name.startswith("_")]
    errors = [name for name in public if name.endswith("Error")]
    parts = [API_TYPES, "## Results and settings\n"]
    parts += [f"::: mooring.{name}\n    options: {{heading_level: 3}}\n" for name in public if name not in errors]
    parts += ["## Errors\n"]
    parts += [f"::: mooring.{name}\n    options: {{heading_level: 3}}\n" for name in errors]
    parts += ["## Options\n", "::: mooring.options\n    options: {heading_level: 3, show_if_no_docstring: true}\n"]
    return "\n".join(parts)


def main() -> None:
    """Write the pages, or say which is out of date."""
    pages = {
        DOCS / "recipes.md": recipes(),
        DOCS / "cli.md": commands(),
        DOCS / "methods.md": methods(),
        DOCS / "errors.md": errors(),
        DOCS / "lora.md": lora(),
        DOCS / "judges.md": judges(classifier.UNSURE, len(classifier.load().vocabulary)),
        **({DOCS / "comparison.md": comparison()} if COMPARED.is_file() else {}),
        DOCS / "verdict.schema.json": verdict_schema(),
        DOCS / "attacks.md": attacks(),
        DOCS / "api-types.md": api_types(),
        SOURCE / "options.py": option_types(),
        PICTURE: picture(LOG.read_text(encoding="utf-8")),
    }
    stale = [path.name for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv:
        if stale:
            sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")
        return
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
