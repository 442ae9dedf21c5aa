"""`mooring merge`: its options, and which of the things that it can do was asked for."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import mooring
from mooring.cli import render
from mooring.merge_point import MergePoint

if TYPE_CHECKING:
    from mooring.merging.job import Job

_SETTINGS = ("weights", "density", "gamma", "epsilon", "normalize", "rescale", "seed")
_JOB = ("models", "lam", "lam_for", "lambdas", "method", *_SETTINGS, "dtype", "tokenizer")
_OUTPUT = ("out", "max_shard_size", "as_adapter", "allow_nonfinite", "threads", "push", "private", "overwrite")
_APART = {
    "verify": ((*_JOB, *_OUTPUT, "config", "export_mergekit"), "give it alone"),
    "config": (_JOB, "models, method and settings are in the configuration"),
    "export_mergekit": (
        ("lambdas", "max_shard_size", "as_adapter", "allow_nonfinite", "push"),
        "a mergekit configuration cannot say it; leave it out",
    ),
    "as_adapter": (("max_shard_size", "tokenizer", "allow_nonfinite"), "an adapter is one file; leave it out"),
}
"""Options that would be passed over where another is given, and what to do about it."""


def merge(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="BASE TUNED...", help="The aligned model, and one or more tuned from it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the merged model.")] = None,
    lam: Annotated[
        str | None,
        typer.Option(help="λ, the weight of the tuned model: 0 is BASE, 1 is TUNED; 0.2..0.8 rises with depth."),
    ] = None,
    lam_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN=λ", help="λ for the tensors of some names: 'layers.{0-9}.mlp.*=0.3'."),
    ] = None,
    lambdas: Annotated[str | None, typer.Option(help="Several λ in one pass, a folder each: 0.2,0.4,0.6,0.8.")] = None,
    method: Annotated[str, typer.Option(help="Merging rule; docs/methods.md has them all.")] = "linear",
    weights: Annotated[str | None, typer.Option(help="Weights of several tuned models: 0.7,0.3.")] = None,
    density: Annotated[str | None, typer.Option(help="Share of each change that is kept: 0.5, or one a model.")] = None,
    gamma: Annotated[str | None, typer.Option(help="breadcrumbs: share of the largest entries dropped.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="della: half the width of the keep probability.")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Divide by the sum of weights.")
    ] = None,
    rescale: Annotated[
        Literal["inverse", "l1", "none"] | None, typer.Option(help="What makes up for dropped entries.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what is drawn (dare, della); 42.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the merged weights; BASE's own without.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest file: 5GB; BASE's files without.")] = None,
    tokenizer: Annotated[
        Literal["larger", "base"] | None, typer.Option(help="Whose, where vocabularies differ in size.")
    ] = None,
    as_adapter: Annotated[bool, typer.Option("--as-adapter", help="LoRA in, LoRA out: a few MB, exact.")] = False,
    config: Annotated[Path | None, typer.Option(help="Do what a mergekit configuration says.")] = None,
    export_mergekit: Annotated[
        bool, typer.Option("--export-mergekit", help="Print the same merge as a mergekit configuration, and stop.")
    ] = False,
    verify: Annotated[Path | None, typer.Option(help="Read an earlier output again: is it what was written?")] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Go on where a weight is NaN or Inf.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="How many work at once.", min=1)] = None,
    push: Annotated[str | None, typer.Option(metavar="HUB_ID", help="Upload the result, with a model card.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new hub repository private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other weights on the hub.")] = False,
) -> None:
    """Merge one or more TUNED models into BASE: (1−λ)·BASE + λ·TUNED, or by another method.

    \b
    Examples:
      mooring merge base/ tuned/ --lam 0.6 --out merged
      mooring merge base/ tuned/ --method slerp --lam 0.2..0.8 --out merged
      mooring merge base/ tuned/ --lam 0.6 --lam-for 'layers.{0-9}.mlp.*=0.3' --out merged
      mooring merge base/ tuned/ --lambdas 0.2,0.4,0.6,0.8 --out sweep
      mooring merge base/ seed1/ seed2/ seed3/ --method model_stock --out merged
      mooring merge meta-llama/Llama-3.1-8B-Instruct adapter/ --lam 0.5 --as-adapter --out adapter-0.5
      mooring merge --config mergekit.yml --out merged
      mooring merge --verify merged
    """
    _check_together(ctx)
    if verify is not None:
        record = mooring.api.verify(verify)
        typer.echo(f"{verify} is what was written: {record['tensors']['all']} tensors, digest {record['digest']}.")
        return
    from mooring.merging.job import bytes_of

    sweep = _sweep(lambdas)
    if config is not None:
        from mooring.merging import mergekit_read

        job = mergekit_read.read(config)
    else:
        settings = {
            "weights": _values(weights, "--weights"),
            "density": _values(density, "--density"),
            "gamma": _values(gamma, "--gamma"),
            "epsilon": _values(epsilon, "--epsilon"),
            "normalize": normalize,
            "rescale": rescale,
            "seed": seed,
        }
        job = _job(models or [], method, _lam(lam, lam_for, sweep), settings, dtype, tokenizer)
    size = bytes_of(max_shard_size, "--max-shard-size")
    if export_mergekit:
        typer.echo(mooring.api.export_mergekit(job), nl=False)
        return
    if out is None:
        raise mooring.UserError("--out is missing", "name a folder for the merged model")
    if push is not None:
        if sweep:
            raise mooring.UserError("--push uploads one model, not several λ", "merge the chosen λ alone")
        from mooring.models.upload import check_push

        check_push(push, private=private)
    with render.bar("merge", resumes=False) as tick:
        made = mooring.api.merge_job(
            job,
            out=out,
            lambdas=sweep,
            max_shard_size=size,
            as_adapter=as_adapter,
            allow_nonfinite=allow_nonfinite,
            threads=threads,
            on_event=lambda event: tick(event.done >> 20, event.total >> 20, "MiB"),
        )
    render.merged(made, [MergePoint(lam).folder for lam in sweep])
    if push is not None:
        command = shlex.join(["mooring", *sys.argv[1:]])
        address = mooring.api.push(
            made, push, base=job.base, tuned=job.tuned, command=command, private=private, overwrite=overwrite
        )
        typer.echo(f"It is on the hub: {address}")


def _check_together(ctx: typer.Context) -> None:
    """Refuse options that would have no effect.

    Raises:
        UserError: Two do not go together.
    """
    given = [name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    for option in (name for name in _APART if name in given):
        names, hint = _APART[option]
        if others := [_named(name) for name in given if name in names]:
            raise mooring.UserError(f"{_named(option)} does not go with {', '.join(others)}", hint)
    for option in ("private", "overwrite"):
        if option in given and "push" not in given:
            raise mooring.UserError(f"{_named(option)} is about --push, which is missing", "give both, or neither")


def _named(option: str) -> str:
    return "BASE, TUNED" if option == "models" else f"--{option.replace('_', '-')}"


def _job(
    models: list[str], method: str, lam: Any, settings: dict[str, Any], dtype: str | None, tokenizer: Any
) -> "Job":
    if len(models) < 2:
        raise mooring.UserError("BASE and TUNED are wanted", "name the aligned model, then the one tuned from it")
    from mooring.merging.job import Job, dtype_named, options_of

    kind = dtype_named(dtype)
    return Job(
        method=method,
        base=models[0],
        tuned=tuple(models[1:]),
        options=options_of(method, lam, **settings),
        dtype=str(kind).removeprefix("torch.") if kind else None,
        tokenizer=tokenizer or "larger",
    )


def _lam(lam: str | None, lam_for: list[str] | None, sweep: list[float]) -> Any:
    """λ from its three options."""
    from mooring.merging.job import parse, parse_rule

    if sweep:
        if lam is not None or lam_for:
            raise mooring.UserError("--lambdas goes with neither --lam nor --lam-for", "give one of them")
        return sweep[0]
    if not lam_for:
        return _parsed(lam, "--lam", parse) if lam is not None else None
    rules: dict[str, Any] = dict(_parsed(text, "--lam-for", parse_rule) for text in lam_for)
    if lam is None:
        return rules
    if "*" in rules:
        raise mooring.UserError("--lam and --lam-for '*=…' say the same", "give one of them")
    return rules | {"*": _parsed(lam, "--lam", parse)}


def _parsed(text: str, option: str, parse: Callable[[str], Any]) -> Any:
    """A value, its faults named with the option."""
    try:
        return parse(text)
    except mooring.UserError as error:
        raise mooring.UserError(f"{option}: {error.message}", error.hint) from None


def _sweep(lambdas: str | None) -> list[float]:
    """Several λ."""
    found = _values(lambdas, "--lambdas") or []
    if any(isinstance(value, tuple) for value in found):
        raise mooring.UserError(f"--lambdas: {lambdas!r} holds a ramp", "give numbers; --lam takes one ramp")
    return found


def _values(text: str | None, option: str) -> list[Any] | None:
    """Values parted by commas: numbers, or ramps such as 0.2..0.8; None where the option was not given."""
    from mooring.merging.job import parse

    if text is None:
        return None
    return [_parsed(part.strip(), option, parse) for part in text.split(",")]
