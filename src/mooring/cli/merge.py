"""Commands about merged models: `merge`, `mergekit`, `verify`, `check-merge`, `to-gguf` and `push`."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import click

import mooring
from mooring.cli import BAD_INPUT, render
from mooring.cli.options import HELP, Verb, fields_given, floats, json_option, verb
from mooring.errors import UserError
from mooring.merge_point import MergePoint
from mooring.options import OutputOptions

_PER_MODEL = ("density", "gamma", "epsilon")
_TYPES: dict[str, click.ParamType[Any]] = {
    "rescale": click.Choice(["inverse", "l1", "none"]),
    "seed": click.INT,
    **dict.fromkeys(_PER_MODEL, click.STRING),
}
"""A merge takes a number, a ramp or one per model where a recipe takes a number, and has one method more."""

_GGUF = ["q8_0", "f16", "bf16"]

_JOB = (
    click.argument("base", help="The aligned model: folder, .gguf file or hub id."),
    click.argument("tuned", nargs=-1, required=True, help="One or more models tuned from it: checkpoints or adapters."),
    click.option("--lam", help="λ, the weight of the tuned model: 0 is BASE, 1 is TUNED; 0.2..0.8 rises with depth."),
    click.option("--lam-for", multiple=True, metavar="PATTERN=λ", help="λ by tensor name: 'layers.{0-9}.mlp.*=0.3'."),
    click.option("--weights", help="Weights of several tuned models: 0.7,0.3."),
    click.option("--normalize/--no-normalize", default=None, help="Divide by the sum of weights."),
    click.option("--dtype", help="Type of the merged weights; defaults to BASE's."),
    click.option(
        "--tokenizer",
        type=click.Choice(["larger", "base", "tuned"]),
        default="larger",
        show_default=True,
        help="Whose tokenizer and chat template; larger: BASE's, or one with more tokens.",
    ),
)
_OUTPUT = (
    click.option("--out", required=True, help="Folder for the merged model."),
    click.option("--max-shard-size", help="Maximum size of a file: 5GB; defaults to BASE's files."),
    click.option("--as-adapter", is_flag=True, help="Write a LoRA adapter; all TUNED must be adapters."),
    click.option("--allow-nonfinite", is_flag=True, help="Allow NaN and Inf among the weights."),
    click.option(
        "--qlora-base",
        type=click.Choice(["given", "dequantized"]),
        default="given",
        show_default=True,
        help="Add a QLoRA adapter to BASE, or to the dequantized weights that it was trained on.",
    ),
    click.option("--keep-quantization", is_flag=True, help="Write quantized weights in BASE's format, not in 16 bits."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Number of threads or processes; by default one per core."
    ),
    click.option("--on", default="local", show_default=True, help="A Ray cluster that does it: ray, ray://HOST:PORT."),
    click.option(
        "--check/--no-check", default=False, help="Compare what it computes with BASE and TUNED, by transformers."
    ),
    click.option("--gguf", type=click.Choice(_GGUF), help="Write it as GGUF too, with a Modelfile for Ollama."),
    json_option,
)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda function: functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)


@click.command("merge", cls=Verb, context_settings=HELP, fields="merge", types=_TYPES)
@_options(
    *_JOB,
    click.option("--lambdas", help="Several λ in one pass, a folder each: 0.2,0.4,0.6,0.8."),
    click.option("--push", "hub_id", metavar="OWNER/NAME", help="Upload it with its card, as `mooring push` does."),
    click.option("--private", is_flag=True, help="Make the hub repository of --push private."),
    click.option("--dry-run", is_flag=True, help="Measure the storage, say how long it will take, and stop."),
    *_OUTPUT,
)
def merge(
    lambdas: str | None, hub_id: str | None, private: bool, dry_run: bool, out: str, as_json: bool, **options: Any
) -> None:
    """Merge tuned models into their base.

    The default method gives (1−λ)·BASE + λ·TUNED.

    \b
    Examples:
      mooring merge base/ tuned/ --lam 0.6 --out merged
      mooring merge base/ tuned/ --method slerp --lam 0.2..0.8 --out merged
      mooring merge base/ tuned/ --lam 0.6 --lam-for 'layers.{0-9}.mlp.*=0.3' --out merged
      mooring merge base/ tuned/ --lambdas 0.2,0.4,0.6,0.8 --out sweep
      mooring merge base/ tuned/ --method resta --unaligned pretrained/ --lam 0.5 --out merged
      mooring merge base/ seed1/ seed2/ seed3/ --method model_stock --out merged
      mooring merge meta-llama/Llama-3.1-8B-Instruct adapter/ --lam 0.5 --as-adapter --out adapter-0.5
      mooring merge base/ tuned/ --lam 0.6 --gguf q8_0 --out merged && ollama create mine -f merged/Modelfile
      mooring merge base/ tuned/ --lam 0.6 --out merged --push OWNER/NAME --private
    """
    several = floats(lambdas, "--lambdas") if lambdas is not None else []
    if several and (options["lam"] is not None or options["lam_for"]):
        raise UserError("--lambdas: replaces --lam and --lam-for", "give one of them", code="usage.lam_and_lambdas")
    if several and hub_id:
        problem = "--push: uploads one model, and --lambdas writes several"
        raise UserError(problem, "choose one λ, or use `mooring push` afterwards", code="usage.push_and_lambdas")
    if private and not hub_id:
        raise UserError("--private: requires --push", "add --push OWNER/NAME", code="usage.private_alone")
    if hub_id:
        from mooring.models.upload import check_push

        check_push(hub_id, private=private)
    base, tuned, job = _job(options)
    output = {name: options[name] for name in OutputOptions.__annotations__}
    if dry_run:
        found = mooring.plan_merge(base, tuned, out=out, lambdas=several, **job, **output)
        return render.forecast(found, as_json=as_json)
    with render.bar("merge", resumes=False) as on_event:
        folder = mooring.merge(base, tuned, out=out, lambdas=several, on_event=on_event, **job, **output)
    url = mooring.push(folder, hub_id, base=base, tuned=tuned, private=private) if hub_id else None
    render.merged(folder, [MergePoint(lam).folder for lam in several], url=url, as_json=as_json)


@click.command("extract-lora", context_settings=HELP)
@click.argument("base", help="The model that was tuned.")
@click.argument("tuned", help="The tuned model, a whole one.")
@click.option("--rank", type=click.IntRange(min=1), required=True, help="Rank of the adapter.")
@click.option("--out", required=True, help="Folder for the adapter.")
@click.option("--dtype", help="Type of the factors; defaults to BASE's.")
@json_option
def extract_lora(base: str, tuned: str, rank: int, out: str, dtype: str | None, as_json: bool) -> None:
    """Write what tuning changed as a LoRA adapter on its base.

    Every changed matrix is approximated at a rank; its error is reported, and what LoRA cannot hold.

    \b
    Examples:
      mooring extract-lora base/ tuned/ --rank 16 --out adapter
      mooring extract-lora meta-llama/Llama-3.1-8B-Instruct tuned/ --rank 64 --out adapter --json
    """
    with render.bar("extract", resumes=False) as on_event:
        found = mooring.extract_lora(base, tuned, out=out, rank=rank, dtype=dtype, on_event=on_event)
    render.result(found, f"The adapter is in {found.folder}. {found.sentence}", as_json=as_json)


@click.group("mergekit", context_settings=HELP)
def mergekit() -> None:
    """Run or export a mergekit configuration."""


@verb(mergekit, "run")
@click.argument("config", help="A mergekit configuration, as YAML.")
@_options(*_OUTPUT)
def run(config: str, out: str, as_json: bool, **output: Any) -> None:
    """Do the merge that a mergekit configuration describes.

    \b
    Examples:
      mooring mergekit run mergekit.yml --out merged
    """
    with render.bar("merge", resumes=False) as on_event:
        folder = mooring.mergekit_run(config, out=out, on_event=on_event, **output)
    render.merged(folder, [], as_json=as_json)


@verb(mergekit, "export", fields="merge", types=_TYPES)
@_options(*_JOB, json_option)
def export(as_json: bool, **options: Any) -> None:
    """Print a merge as a mergekit configuration; the options are those of `mooring merge`.

    \b
    Examples:
      mooring mergekit export base/ tuned/ --method ties --lam 0.6 --density 0.5 > mergekit.yml
    """
    base, tuned, job = _job(options)
    config = mooring.mergekit_export(base, tuned, **job)
    render.result({"config": config}, config.removesuffix("\n"), as_json=as_json)


@click.command("verify", context_settings=HELP)
@click.argument("folder", help="A folder that `mooring merge` wrote.")
@json_option
def verify(folder: str, as_json: bool) -> None:
    """Check that a merged model is what was written.

    \b
    Examples:
      mooring verify merged
    """
    manifest = mooring.verify(folder)
    text = f"{folder} is what was written: {manifest['tensors']['all']} tensors, digest {manifest['digest']}."
    render.result(manifest, text, as_json=as_json)


@click.command("check-merge", context_settings=HELP)
@click.argument("folder", help="A folder that `mooring merge` wrote.")
@click.argument("base", help="The base that it was merged from.")
@click.argument("tuned", nargs=-1, required=True, help="The tuned model, or all of them in order.")
@click.option("--unaligned", help="The pre-trained model that BASE was aligned from, if the method requires it.")
@click.option("--safety-adapter", help="The safer model, if the merge was given one.")
@json_option
def check_merge(folder: str, base: str, tuned: tuple[str, ...], as_json: bool, **references: str | None) -> None:
    """Check that a merged model computes what it should.

    Its tensors and logits are compared with those of BASE and TUNED, which transformers and PEFT load. Exits with 2 if
    more than rounding differs.

    \b
    Examples:
      mooring check-merge merged base/ tuned/
      mooring check-merge merged meta-llama/Llama-3.1-8B-Instruct adapter/ --json
    """
    with render.bar("check", resumes=False) as on_event:
        found = mooring.check_merge(
            folder,
            base,
            tuned,
            unaligned=references["unaligned"],
            safety_adapter=references["safety_adapter"],
            on_event=on_event,
        )
    render.result(found, found.sentence, as_json=as_json)
    if not found.passed:
        sys.exit(BAD_INPUT)


@click.command("to-gguf", context_settings=HELP)
@click.argument("model", help="A model, or a LoRA adapter.")
@click.option("--out", required=True, help="Folder for the file and a Modelfile.")
@click.option(
    "--type", "kind", type=click.Choice(_GGUF), default="q8_0", show_default=True, help="How matrices are stored."
)
@click.option("--base", help="The adapter's base; defaults to the one that it names.")
@json_option
def to_gguf(model: str, out: str, kind: Any, base: str | None, as_json: bool) -> None:
    """Write a model as GGUF, for llama.cpp and Ollama.

    The file has the tokenizer, the chat template and all metadata; a LoRA adapter becomes a GGUF adapter.

    \b
    Examples:
      mooring to-gguf merged --out gguf && ollama create mine -f gguf/Modelfile
      mooring to-gguf runs/mine/model --type f16 --out gguf && llama-server -m gguf/model-F16.gguf
      mooring to-gguf adapter/ --base base/ --out gguf
    """
    with render.bar("to-gguf", resumes=False) as on_event:
        made = mooring.to_gguf(model, out=out, type=kind, base=base, on_event=on_event)
    text = f"The GGUF file is {made.file}; Ollama takes it by: ollama create NAME -f {made.modelfile}"
    if made.left_out:
        text += f"\n{len(made.left_out)} tensors are not part of the language model and were left out."
    render.result(made, text, as_json=as_json)


@click.command("push", context_settings=HELP)
@click.argument("folder", help="A folder that `mooring merge` wrote, or the model/ of a run.")
@click.argument("hub_id", help="OWNER/NAME.")
@click.option("--base", default="", help="The base's hub id, which the card links.")
@click.option("--tuned", multiple=True, help="The tuned model's hub id, which the card links; once per model.")
@click.option("--private", is_flag=True, help="Make a new hub repository private.")
@click.option("--overwrite", is_flag=True, help="Replace other weights on the hub.")
@json_option
def push(folder: str, hub_id: str, as_json: bool, **options: Any) -> None:
    """Upload a merged model with its model card.

    \b
    Examples:
      mooring push merged OWNER/NAME --base meta-llama/Llama-3.1-8B-Instruct
      mooring push runs/mine/model OWNER/NAME --private
    """
    url = mooring.push(folder, hub_id, **options)
    render.result({"url": url}, f"It is on the hub: {url}", as_json=as_json)


def _job(options: dict[str, Any]) -> tuple[str, list[str], dict[str, Any]]:
    """Base, tuned models, and the arguments that describe the merge."""
    own = {name: options[name] for name in ("weights", "normalize", "dtype", "tokenizer")}
    job = fields_given(options) | own | {"lam": _lam(options["lam"], options["lam_for"])}
    for name in ("weights", *_PER_MODEL):
        if job.get(name) is not None:
            job[name] = [_parsed(part.strip(), name, "parse") for part in job[name].split(",")]
    return options["base"], list(options["tuned"]), job


def _lam(lam: str | None, lam_for: Sequence[str]) -> Any:
    """λ from its two options."""
    if not lam_for:
        return None if lam is None else _parsed(lam, "lam", "parse")
    rules: dict[str, Any] = dict(_parsed(text, "lam-for", "parse_rule") for text in lam_for)
    if lam is None:
        return rules
    if "*" in rules:
        raise UserError("--lam and --lam-for '*=…': are the same", "give one of them", code="usage.two_lams")
    return rules | {"*": _parsed(lam, "lam", "parse")}


def _parsed(text: str, option: str, parser: Literal["parse", "parse_rule"]) -> Any:
    """A value, such as 0.6, 0.2..0.8 or PATTERN=VALUE; an error names the option."""
    from mooring.merging import tensor_value

    try:
        return getattr(tensor_value, parser)(text)
    except UserError as error:
        raise UserError(f"--{option}: {error.message}", error.hint, code=error.code) from None
