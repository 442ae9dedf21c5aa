"""Commands whose options are fields of a recipe: name, type, default, bounds and help come from `mooring.config`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin

import click

from mooring.errors import UserError
from mooring.files import expanded

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_ORDER = "mooring.order"
"""Where a context keeps the names of the options in the order in which they were given."""
_KEYS = "mooring.keys"
"""Where a context keeps each option's key in a recipe, such as `select.margin`."""
_SET = "set"
_ALIASES: Mapping[str, str] = {"max_tokens": "max_new_tokens", "metrics": "metric", "plugins": "plugin"}
"""Other names of options: transformers' name, and the singular."""
ENGINE, JUDGE_MODELS = "Engine", "Judge models"
"""Headings in the help."""


class Field(click.Option):
    """An option that is a field of a recipe. One that is not given has no value: the default is the recipe's."""


class Verb(click.Command):
    """A command that takes fields of a recipe as options.

    The options are built when they are first needed, so that listing the commands loads neither pydantic nor torch.

    Args:
        fields: A key of `config.VERBS`; without it, the command has only the options declared on it.
        judge: Whether it also takes the options of the judges' models: `--judge-model`, `--judge-engine` …, which are
            `--engine` … as well if the command runs no other model.
        defaults: Whether to show the defaults of the fields; not for a verb that starts from another recipe.
        types: Types that differ from the fields' own.
    """

    def __init__(self, *args: Any, **attrs: Any) -> None:
        self._fields: str | None = attrs.pop("fields", None)
        self._judge: bool = attrs.pop("judge", False)
        self._defaults: bool = attrs.pop("defaults", True)
        self._types: Mapping[str, click.ParamType[Any]] = attrs.pop("types", {})
        self._built = False
        super().__init__(*args, **attrs)

    def keys(self) -> dict[str, str]:
        """The key of each generated option in a recipe."""
        from mooring.config import options_of

        keys = options_of(self._fields) if self._fields else {}
        if self._judge:
            of_judge = {f"judge_{name}": key for name, key in options_of("prefer").items() if key.startswith("judge.")}
            keys |= {"judge_model": "judge.model", **of_judge}
        return keys

    def _flags(self, name: str, key: str) -> list[str]:
        """The names of an option on the command line."""
        short = name.removeprefix("judge_")
        if name in _ALIASES:
            return [name, _ALIASES[name]]
        return [name] if short in ("model", name) or "engine" in self.keys() else [name, short]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those of the engine and of the judges under headings of their own."""
        keys = self.keys()
        parts: dict[str, list[tuple[str, str]]] = {"Options": [], ENGINE: [], JUDGE_MODELS: []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                parts[_heading(keys.get(param.name or "", ""))].append(record)
        for heading, records in parts.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters, the generated ones after those of the command itself."""
        if not self._built and (keys := self.keys()):
            from mooring.config import field_at

            for name, key in keys.items():
                default = _default(key, field_at(key)) if self._defaults else ""
                self.params.append(_option(self._flags(name, key), field_at(key), default, self._types.get(name)))
        self._built = True
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and keep the order of the options."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [param.name for param in order if isinstance(param, Field) or param.name == _SET]
        ctx.meta[_KEYS] = self.keys()
        return super().parse_args(ctx, args)


class Verbs(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names."""
        return list(self.commands)


def fields_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command's options, the fields of a recipe that were given; those of a judge as entries of `judges`."""
    meta = click.get_current_context().meta
    given = {name: options[name] for name in meta[_ORDER] if name != _SET}
    if "judge_model" not in meta[_KEYS]:
        return given
    judge = {n.removeprefix("judge_"): given.pop(n) for n in list(given) if meta[_KEYS][n].startswith("judge.")}
    if judge:
        names = given.get("judges", ())
        given["judges"] = [{"name": name, **judge} for name in ([names] if isinstance(names, str) else names)] or [
            judge
        ]
    return given


def overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields given by name or by `--set`, by their keys in a recipe; of several for one key the last counts."""
    from mooring.config import parse_override

    meta = click.get_current_context().meta
    sets = iter(options.get(_SET) or ())
    values: dict[str, Any] = {}
    for name in meta[_ORDER]:
        key, value = parse_override(next(sets)) if name == _SET else (meta[_KEYS][name], options[name])
        values.pop(key, None)
        values[key] = value
    return values


HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def verb(group: click.Group, name: str, **attrs: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Add a command to a group; its keywords are those of `Verb`."""
    return group.command(name, cls=Verb, context_settings=HELP, **attrs)


set_option = click.option(
    "--set", _SET, multiple=True, metavar="KEY=VALUE", help="Any field of the recipe: select.margin=0.05."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
track_option = click.option(
    "--track",
    type=click.Choice(["wandb", "mlflow", "tensorboard"]),
    help="Send the numbers to this tracker as they come, and the figure at the end.",
)
split_option = click.option(
    "--split",
    type=click.Choice(["tune", "validation", "test"]),
    default="test",
    show_default=True,
    help="Which part of a data set that has parts.",
)
kind_option = click.option(
    "--kind",
    "--as",
    "kind",
    type=click.Choice(["safety", "over_refusal", "ordinary", "task"]),
    help="What the prompts are for. Defaults to what the data set is for, and to safety if that is unknown.",
)
base_argument = click.argument("base", help="The aligned model: folder, .gguf file or hub id.")
tuned_argument = click.argument("tuned", help="The model tuned from it: checkpoint or LoRA adapter.")


# --- From a field to an option ---


def _heading(key: str) -> str:
    """The heading in the help over an option with this key in a recipe."""
    from mooring import config

    if key.startswith("judge."):
        return JUDGE_MODELS
    return ENGINE if key in config.ENGINE else "Options"


def _option(names: Sequence[str], field: "FieldInfo", default: str, own: click.ParamType[Any] | None) -> Field:
    kind, several, nullable = _parts(field.annotation)
    kind = next((each for each in field.metadata if hasattr(each, "registry")), kind)
    flags = [name.replace("_", "-") for name in names]
    return Field(
        [*(f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}" for flag in flags), names[0]],
        type=own or (None if kind is bool else _Value(kind, several, nullable, field.default)),
        default=None,
        help=f"{field.description}{default}",
    )


def _default(key: str, field: "FieldInfo") -> str:
    """A field's default, if there is one to show."""
    from mooring.config import SAMPLING, SafetySampling

    if field.is_required() or (value := field.get_default(call_default_factory=True)) is None:
        return ""
    name = key.removeprefix("generate.")
    safety = SafetySampling.model_fields[name].default if name in SAMPLING else None
    return f" [default: {_shown(value)}{'' if safety is None else f'; {safety:g} except for a task'}]"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_shown(getattr(each, "name", each)) for each in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parts(annotation: Any) -> tuple[Any, bool, bool]:
    """A field's own type, whether it takes several values, and whether it may be null."""
    if hasattr(annotation, "__metadata__"):
        registry = next((each for each in annotation.__metadata__ if hasattr(each, "registry")), None)
        return (registry, False, False) if registry else _parts(annotation.__origin__)
    if get_origin(annotation) is tuple:
        return _parts(get_args(annotation)[0])[0], True, False
    if annotation is None or not (arguments := get_args(annotation)) or get_origin(annotation) is Literal:
        return annotation, False, False
    others = [each for each in arguments if each is not type(None)]
    kind, several, _ = _parts(others[-1])
    return kind, several, len(others) < len(arguments)


class _Value(click.ParamType[Any]):
    """Text for a field, which `mooring.config` converts and checks.

    `none` is null if the field may be, and commas separate several values.
    """

    names: ClassVar[Mapping[Any, str]] = {int: "integer", float: "float"}

    def __init__(self, kind: Any, several: bool, nullable: bool, default: Any) -> None:
        self.several, self.nullable, self.default = several, nullable, default
        self.choices = [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []
        if registry := getattr(kind, "registry", None):  # `config.OneOf`
            self.choices = list(registry.built_in)
        self.name = self.names.get(kind, "text")

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        if self.choices:
            return f"[{'|'.join(self.choices)}]"
        return f"{self.name.upper()},…" if self.several else None

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.nullable and value not in self.choices and value.strip().lower() in ("", "none", "null"):
            return None
        return tuple(words(value)) if self.several and value != self.default else value


def floats(text: str, option: str) -> list[float]:
    """Numbers separated by commas.

    Raises:
        UserError: One is not a number, or there is none.
    """
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        hint = "write it as 0.2,0.4,0.6"
        raise UserError(f"{option}: {text!r} is not a list of numbers", hint, code="usage.not_numbers")
    return numbers


def words(text: str) -> list[str]:
    """Words separated by commas; the name of an existing file is one, even if it contains commas."""
    if expanded(text).is_file():
        return [text]
    return [part.strip() for part in text.split(",") if part.strip()]
