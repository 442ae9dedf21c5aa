"""The model card, which is the README.md that the hub shows: of a run's chosen model, and of a merge alone.

It contains no prompt and no response. All text from outside (names, references, decisions, the command) is shown as
plain text, and of paths only the last part.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.bounded import CONFIG, YAML, parse_yaml, read_bytes
from mooring.merge_methods import METHODS
from mooring.merge_point import lam_label
from mooring.models.resolve import hub_name
from mooring.printable import one_line
from mooring.records import RunVerdict
from mooring.reporting.render import as_markdown
from mooring.reporting.results import COLUMNS, Results, is_task
from mooring.reporting.tables import gain_number, measures, summary_table
from mooring.text import (
    MISSING,
    fenced,
    markdown,
    markdown_code,
    name_of,
    number_of,
    short_name,
    without_folders,
)

NAME = "model-card.md"
"""Its file beside the report."""
SHOWN = 8
"""Decisions, notes and digests that a card shows at most, of each; the manifest has them all."""
LIMITS = (
    "ASR counts plain requests, asked once. Attacks that rephrase, persuade or optimise a prompt, long "
    "conversations, tools and other languages were not tried.",
    "An interval says how far the number could move with other prompts of the same kind. It says nothing of other "
    "kinds of prompts, of another judge, or of another seed of tuning.",
    "A merge keeps what the base would not do only as far as it was measured. Measure it on prompts of your own before "
    "you use it.",
)
"""What no number of the card says."""
LAMBDA = "the weight of the tuned model: 0 is the base, 1 the tuned model"
_TERMS = ("license", "license_name", "license_link")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def license_of(folder: Path) -> dict[str, str]:
    """The license that a model folder's own card names, as front matter (`license`, `license_name`, `license_link`).

    Empty if there is no card, it cannot be read, or it names none.
    """
    try:
        text = read_bytes(folder / "README.md", CONFIG).decode("utf-8")
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text, re.DOTALL)
        found = parse_yaml(match[1].encode(), YAML) if match else None
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    terms = {key: found[key] for key in _TERMS if isinstance(found.get(key), str)}
    if not _LICENSE.fullmatch(terms.get("license", "")) or not _LICENSE.fullmatch(terms.get("license_name", "other")):
        return {}
    if not re.fullmatch(r"https://[\w./%-]+", terms.get("license_link", ""), re.ASCII):
        terms.pop("license_link", None)  # a link within the base's own repository leads nowhere from another
    return terms


def run_card(results: Results, *, terms: Mapping[str, str] | None = None) -> str:
    """The card of a run's chosen model: what it was made from, λ and why, numbers, limits.

    Args:
        results: A run's results.
        terms: The base's license, by `license_of`; without, none is named.
    """
    choice, recipe = results.choice, results.recipe
    name = f"{one_line(str(recipe.get('name', 'run')))}, {choice.point.label}"
    method = _method(recipe.get("merge", {}).get("method", ""))
    refs = [str(recipe[key]) for key in ("base", "tuned") if recipe.get(key)]
    more: dict[str, Any] = {"pipeline_tag": "text-generation"}
    if scores := list(_eval_results(results)):  # the hub's reader refuses numbers without the model's name
        more |= {"model_name": name, "eval_results": scores}
    why = [
        f"**{markdown(choice.point.label)}**, {LAMBDA}. {markdown(choice.reason)}",
        markdown(choice.sensitivity),
        "λ was chosen on some of the prompts (validation). The numbers below are of other prompts (test).",
    ]
    judge, *others = [markdown(judge) for judge in results.judges] or ["no judge"]
    judged = f"Safety is judged by **{judge}**" + (f"; also by {', '.join(others)}" if others else "") + "."
    versions = [f"{markdown(package)} {markdown(version)}" for package, version in sorted(results.versions.items())]
    return _card(
        _front_matter(filter(None, map(hub_name, refs)), "merge", ["safety", method], terms, **more),
        name,
        f"{_verdict(results.verdict)}\n\n{_summary(results, method)}",
        {
            "Made from": ["\n".join(_models(results))],
            "λ, and why": why,
            "Measured": [as_markdown(summary_table(results)), judged, _gains(results)],
            "Limits": ["\n".join(f"- {markdown(limit)}" for limit in (*LIMITS, *results.notes))],
            "How it was made": [fenced(_recipe(recipe), "yaml"), f"Made with {', '.join(versions)}."],
        },
        "The tuning data may bring terms of their own." if terms else None,
    )


def merge_card(
    record: Mapping[str, Any],
    *,
    title: str,
    base_ref: str | None,
    tuned_refs: Sequence[str | None],
    command: str | None,
    terms: Mapping[str, str] | None = None,
    adapter: bool = False,
) -> str:
    """The card of a merge that was not measured: what was merged, how, and how to measure it.

    Args:
        record: The manifest, as `mooring.json` holds it.
        title: Heading, such as the hub id.
        base_ref: The base's hub id, with or without `@revision`; `None` if it is local. A relative folder such as
            `runs/tuned` looks like an id: `hub_name` tells them apart, since it looks at the disk.
        tuned_refs: Those of the tuned models, in the manifest's order.
        command: The command that made it, as typed.
        terms: The base's license, by `license_of`; without, none is named.
        adapter: Whether the output is a LoRA adapter, not a checkpoint.

    Raises:
        ValueError: There are not as many `tuned_refs` as tuned models in the manifest.
    """
    refs = [_valid_ref(ref) for ref in (base_ref, *tuned_refs)]
    ids = [ref.partition("@")[0] for ref in refs if ref]
    method = _method(record["method"])
    thing = "A LoRA adapter that merges" if adapter else "A merge of"
    count = len(record["tuned"])
    models = "a tuned model" if count == 1 else f"{count} tuned models"
    tensors = record["tensors"]
    end = " It is loaded on that base." if adapter else ""
    summary = (
        f"{thing} {models} with the base, made with Mooring.{end} "
        f"{int(tensors['changed'])} of {int(tensors['all'])} tensors differ from the base's."
    )
    # An adapter is linked with its base alone: that is the model it is loaded on.
    linked, tags = (ids[:1] if refs[0] else [], ["lora"]) if adapter else (ids, [])
    return _card(
        _front_matter(linked, "adapter" if adapter else "merge", [method, *tags], terms),
        title,
        summary,
        {
            "Made from": [_sources(record, refs)],
            "How": _how(record, method, command),
            "Decided": [
                *_excerpt("Decisions", [f"{name}: {text}" for name, text in record.get("decisions", {}).items()]),
                *_excerpt("Notes", [str(note) for note in record.get("notes", ())]),
            ],
            "Digests of this model": _excerpt("SHA-256", list(_flat(record.get("digest")))),
            "Not measured": [_not_measured(refs)],
        },
        "The tuned models may bring terms of their own." if terms else None,
    )


# --- What both have ---


def _card(front: str, title: str, summary: str, sections: Mapping[str, Sequence[str]], license_: str | None) -> str:
    parts = [front, f"# {markdown(title)}", summary]
    if license_:
        sections = {**sections, "License": [f"The license named above is the base's. {license_}"]}
    for heading, paragraphs in sections.items():
        if found := [paragraph for paragraph in paragraphs if paragraph]:
            parts += [f"## {heading}", *found]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    ids: Iterable[str], relation: str, tags: Sequence[str], terms: Mapping[str, str] | None, **more: Any
) -> str:
    """What the hub reads, by its own library."""
    from huggingface_hub import ModelCardData

    bases = list(dict.fromkeys(ids)) or None
    if bases:
        more["base_model_relation"] = relation
    more |= {key: value for key, value in (terms or {}).items() if key in _TERMS}
    library = "peft" if relation == "adapter" else "transformers"
    data = ModelCardData(base_model=bases, library_name=library, tags=["merge", "mooring", *tags], **more)
    return f"---\n{data.to_yaml()}\n---"


def _method(name: object) -> str:
    return re.sub(r"[^\w-]", "", str(name), flags=re.ASCII) or "unknown"


# --- A run's model ---


def _verdict(verdict: RunVerdict) -> str:
    """The verdict, which comes before all else."""
    caveats = "".join(f" {markdown(caveat)}" for caveat in verdict.caveats)
    return f"**{verdict.words}.** {markdown(verdict.sentence)}{caveats}"


def _summary(results: Results, method: str) -> str:
    text = f"A tuned model merged back towards the aligned model that it came from, by `{method}`, with Mooring."
    scores = [results.score(model, "asr") for model in COLUMNS]
    values = [number_of(score.value, "asr").short for score in scores if score and score.value is not None]
    if len(values) < len(COLUMNS):
        return text
    return f"{text} Attack success rate: base {values[0]}, tuned {values[1]}, **this model {values[2]}**."


def _models(results: Results) -> Iterator[str]:
    """Base and tuned model with their digests; what is on the hub with its address."""
    for role in ("base", "tuned"):
        about, ref = results.models.get(role, {}), results.recipe.get(role)
        digest = about.get("digest", "")
        digest = digest if re.fullmatch("[0-9a-f]+", digest) else MISSING
        source = re.sub(r"(?<!\S)[.~]{0,2}/[^\s,]*", lambda path: Path(path[0]).name, about.get("source", "unknown"))
        address = hub_name(str(ref)) if ref else None
        name = f"[{markdown(source)}](https://huggingface.co/{address})" if address else markdown(source)
        yield f"- {role}: {name}, digest `{digest}`"
    tune = results.recipe.get("tune")
    if isinstance(tune, Mapping):
        data = ", ".join(without_folders(str(ref)) for ref in tune.get("data", ()))
        yield f"- tuned on: {markdown(data)}, LoRA rank {markdown(str(tune.get('r')))}"


def _gains(results: Results) -> str:
    """How much of the tuning is left, by task score."""
    kept = [
        f"{gain_number(gain)} in {short_name(name)}"
        for name, gain in sorted(results.gains.items())
        if gain.value is not None and "/" not in name
    ]
    return f"Of what tuning gained over the base, this model keeps {markdown(', '.join(kept))}." if kept else ""


def _eval_results(results: Results) -> Iterator[Any]:
    """The merged model's numbers on the test split, one each, in the hub's form: rates as shares, not percent."""
    from huggingface_hub import EvalResult

    for measure in measures(results):
        base, tuned, score = (results.score(model, measure) for model in COLUMNS)
        if score is None or score.value is None:
            continue
        ends = {"low": score.low, "high": score.high} if score.low is not None and score.high is not None else {}
        others = {"base": base.value if base else None, "tuned": tuned.value if tuned else None}
        numbers = {name: round(value, 4) for name, value in (ends | others).items() if value is not None}
        dataset = _dataset(results.recipe, measure)
        yield EvalResult(
            task_type="text-generation",
            task_name="task" if is_task(measure) else "safety",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=one_line(measure),
            metric_name=f"{name_of(measure)}, by {one_line(score.method)}" if score.method else name_of(measure),
            metric_value=round(score.value, 4),
            metric_args={"n": score.n, **numbers},
        )


def _dataset(recipe: Mapping[str, Any], measure: str) -> str:
    """The prompts that a score is computed from, by the names that the recipe gives them."""
    name, _, part = measure.partition("@")[0].partition(":")
    if name == "lm_eval":
        return one_line(part)
    if name == "asr" and part:
        return without_folders(part)
    field = {"asr": "safety", "refusal": "safety", "over_refusal": "over_refusal", "ordinary_refusal": "ordinary"}
    refs = recipe.get("score", {}).get(field.get(name, "task"))
    refs = [refs] if isinstance(refs, str) else refs or []
    return " + ".join(without_folders(str(ref)) for ref in refs) or "unnamed"


def _recipe(recipe: Mapping[str, Any]) -> str:
    """The recipe as YAML, without paths and servers."""
    import yaml

    def shorten(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shorten(item) for key, item in value.items() if key != "base_url"}
        if isinstance(value, list | tuple):
            return [shorten(item) for item in value]
        return Path(value).name if isinstance(value, str) and value.startswith(("./", "../", "~", "/")) else value

    return str(yaml.safe_dump(shorten(dict(recipe)), sort_keys=False, allow_unicode=True))


# --- A merge alone ---


def _sources(record: Mapping[str, Any], refs: Sequence[str | None]) -> str:
    """The inputs: those on the hub with their address, local folders by name.

    Each has its digest, except the base of an adapter: the merge did not read its weights.
    """
    lines = []
    for number, (source, ref) in enumerate(zip((record["base"], *record["tuned"]), refs, strict=True)):
        role = "base" if number == 0 else "tuned" if len(refs) == 2 else f"tuned {number}"
        name = markdown_code(str(source["name"]))
        if ref:
            bare, _, revision = ref.partition("@")
            at = f" at {markdown_code(revision)}" if revision else ""
            name = f"[{markdown_code(bare)}](https://huggingface.co/{bare}){at}"
        digest = f", digest {markdown_code(str(source['digest']))}" if "digest" in source else ""
        lines.append(f"- {role}: {name} ({markdown(str(source['kind']))}){digest}")
    return "\n".join(lines)


def _how(record: Mapping[str, Any], method: str, command: str | None) -> list[str]:
    """Method, formula, λ, settings, versions and command."""
    formula = METHODS[method].formula if method in METHODS else ""
    rule = f", θ = {formula}" + (", where δᵢ = tunedᵢ − base" if "δᵢ" in formula else "") if formula else ""
    versions = (f"{markdown(str(name))} {markdown_code(str(version))}" for name, version in record["made_with"].items())
    parts = [f"- method: `{method}`{rule}\n- {_lam(record['lambda'])}\n- made with: {', '.join(versions)}"]
    options = {key: value for key, value in record.get("options", {}).items() if value not in (None, [], (), {})}
    if options:
        parts += ["Settings:", fenced(json.dumps(options, indent=2, ensure_ascii=False), "json")]
    if command and (shown := _without_paths(command)):
        parts.append(fenced(shown, "sh"))
    return [*parts, "`mooring.json` beside this card is the whole record."]


def _lam(lam: Any) -> str:
    if isinstance(lam, int | float):
        return f"**{lam_label(lam)}** (λ is {LAMBDA})"
    if isinstance(lam, list | tuple):
        return f"**{lam_label(*lam)}**, from the first layer to the last (λ is {LAMBDA})"
    return f"λ by tensor: {markdown_code(json.dumps(lam, ensure_ascii=False))} (λ is {LAMBDA})"


def _flat(values: Any, prefix: str = "") -> Iterator[str]:
    """Nested mappings as lines `a/b: value`."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))
    elif values:
        yield f"{prefix or 'sha256'}: {values}"


def _excerpt(what: str, lines: Sequence[str]) -> list[str]:
    """The first few lines below what they are, each cut at a length that can be read; nothing if there are none."""
    if not lines:
        return []
    shown = [one_line(line) for line in lines[:SHOWN]]
    shown = [line if len(line) <= 200 else f"{line[:199]}…" for line in shown]
    more = [f"and {len(lines) - SHOWN} more in mooring.json"] if len(lines) > SHOWN else []
    return [f"{what} ({len(lines)}):", fenced("\n".join(shown + more), "text")]


def _not_measured(refs: Sequence[str | None]) -> str:
    base = (refs[0] or "BASE").partition("@")[0]
    tuned = ((refs[1] if len(refs) == 2 else None) or "TUNED").partition("@")[0]
    command = f"mooring safeguard {base} {tuned} --task task.jsonl --out runs/check"
    return (
        "**Neither the safety of this model nor the quality of its answers was measured when it was merged.** A merge "
        "can lose refusals that the base had, and skill that the tuned model had. Measure both before you use it; this "
        "gives the base, the tuned model and merges of the two over λ the same prompts, and reports the results:\n\n"
        + fenced(command, "sh")
        + "\n\nTo measure this very model, in its folder:\n\n"
        + fenced("mooring generate . advbench --out advbench.jsonl\nmooring score advbench.jsonl advbench", "sh")
    )


def _valid_ref(ref: str | None) -> str | None:
    """A reference if it is a hub id, with or without `@revision`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

    bare, at, revision = (ref or "").partition("@")
    try:
        validate_repo_id(bare)
    except HFValidationError:
        return None
    return ref if not at or re.fullmatch(r"[\w./-]{1,200}", revision, re.ASCII) else None


def _without_paths(command: str) -> str | None:
    """A command with every path cut to its last part; `None` if it cannot be split as a shell does."""

    def shorten(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if value.startswith(("/", "~", ".")) or value.count("/") > 1 or "\\" in value:
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1] or "."
        return option + equals + value

    try:
        return shlex.join(shorten(word) for word in shlex.split(command))
    except ValueError:
        return None
