"""The card of a merged model: the README.md that the hub shows, made from the manifest."""

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.merge_methods import METHODS

SHOWN = 8
"""Decisions, notes and digests that the card shows at most, of each; the manifest has them all."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def card(
    record: Mapping[str, Any],
    *,
    title: str,
    base_ref: str | None,
    tuned_refs: Sequence[str | None],
    command: str | None,
    terms: Mapping[str, str] | None = None,
    adapter: bool = False,
) -> str:
    """README.md of a merged model: front matter for the hub, and what was merged, how, and what was not measured.

    All text from outside (names, references, decisions, the command) is shown as plain text, and paths by their last
    part alone.

    Args:
        record: The manifest, as `mooring.json` holds it.
        title: Heading, such as the hub id.
        base_ref: The base's hub id, with or without `@revision`; None where it is local. A relative folder such as
            `runs/tuned` looks like an id: `sources.hub_name` tells them apart, since it sees what is on the disk.
        tuned_refs: Those of the tuned models, in the manifest's order.
        command: The command that made it, as typed.
        terms: The base's license, by `license_of`; without, the card names none.
        adapter: Whether the output is a LoRA adapter, not a checkpoint.

    Raises:
        ValueError: There are not as many `tuned_refs` as tuned models in the manifest.
    """
    base, *tuned = (_hub_id(ref) for ref in (base_ref, *tuned_refs))
    method = re.sub(r"[^\w-]", "", str(record["method"]), flags=re.ASCII) or "unknown"
    parts = [
        _front_matter(base, tuned, method, terms or {}, adapter),
        f"# {_plain(title)}",
        _what_it_is(record, len(tuned), adapter),
        "## Made from",
        _made_from(record, [base, *tuned]),
        *_how(record, method, command),
        *_decided(record),
        *_digests(record),
        "## Not measured",
        _warning(base, tuned),
    ]
    if terms:
        parts += ["## License", "The license named above is the base's. The tuned models may bring terms of their own."]
    return "\n\n".join(parts) + "\n"


def license_of(folder: Path) -> dict[str, str]:
    """The license that a model folder's own card names, as front matter (`license`, `license_name`, `license_link`).

    Empty where there is no card, it cannot be read, or it names none.
    """
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")[: 2**20]
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text, re.DOTALL)
        found = yaml.safe_load(match[1]) if match else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    wanted = {key: found.get(key) for key in ("license", "license_name", "license_link")}
    terms = {key: value for key, value in wanted.items() if isinstance(value, str)}
    if not _LICENSE.fullmatch(terms.get("license", "")) or not _LICENSE.fullmatch(terms.get("license_name", "other")):
        return {}
    if not re.fullmatch(r"https://[\w./%-]+", terms.get("license_link", ""), re.ASCII):
        terms.pop("license_link", None)  # a link within the base's own repository leads nowhere from another
    return terms


def _front_matter(
    base: str | None, tuned: Sequence[str | None], method: str, terms: Mapping[str, str], adapter: bool
) -> str:
    """What the hub reads. An adapter is linked with its base alone: that is the model it is loaded on."""
    from huggingface_hub import ModelCardData

    ids = list(dict.fromkeys(_bare(ref) for ref in ([base] if adapter else [base, *tuned]) if ref))
    more: dict[str, Any] = {key: terms[key] for key in ("license", "license_name", "license_link") if key in terms}
    if ids:
        more["base_model_relation"] = "adapter" if adapter else "merge"
    data = ModelCardData(
        base_model=ids or None,
        library_name="peft" if adapter else "transformers",
        tags=["merge", "mooring", method, *(["lora"] if adapter else [])],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---"


def _what_it_is(record: Mapping[str, Any], tuned: int, adapter: bool) -> str:
    thing = "A LoRA adapter that merges" if adapter else "A merge of"
    models = "a tuned model" if tuned == 1 else f"{tuned} tuned models"
    end = " It is loaded on that base." if adapter else ""
    tensors = record["tensors"]
    changed = f" {int(tensors['changed'])} of {int(tensors['all'])} tensors differ from the base's."
    return f"{thing} {models} with the base, made with Mooring.{end}{changed}"


def _made_from(record: Mapping[str, Any], ids: Sequence[str | None]) -> str:
    """A list of the inputs: those on the hub with their address, local folders by name.

    Each has its digest, except the base of an adapter, whose weights the merge did not read.
    """
    lines = []
    for number, (source, ref) in enumerate(zip((record["base"], *record["tuned"]), ids, strict=True)):
        role = "base" if number == 0 else "tuned" if len(ids) == 2 else f"tuned {number}"
        name = _code(str(source["name"]))
        if ref:
            bare, _, revision = ref.partition("@")
            name = f"[{_code(bare)}](https://huggingface.co/{bare})" + (f" at {_code(revision)}" if revision else "")
        digest = f", digest {_code(str(source['digest']))}" if "digest" in source else ""
        lines.append(f"- {role}: {name} ({_plain(str(source['kind']))}){digest}")
    return "\n".join(lines)


def _how(record: Mapping[str, Any], method: str, command: str | None) -> list[str]:
    """Method, formula, λ, settings, versions and command."""
    lines = [f"- method: `{method}`"]
    if method in METHODS:
        formula = METHODS[method].formula
        lines[0] += f", θ = {formula}" + (", where δᵢ = tunedᵢ − base" if "δᵢ" in formula else "")
    lines.append(f"- {_lam(record['lambda'])}")
    versions = ", ".join(f"{_plain(str(name))} {_code(str(version))}" for name, version in record["made_with"].items())
    lines.append(f"- made with: {versions}")
    parts = ["## How", "\n".join(lines)]
    options = {key: value for key, value in record.get("options", {}).items() if value not in (None, [], (), {})}
    if options:
        parts += ["Settings:", _fenced(json.dumps(options, indent=2, ensure_ascii=False), "json")]
    shown = _without_paths(command) if command else None
    if shown:
        parts.append(_fenced(shown, "sh"))
    return [*parts, "`mooring.json` beside this card is the whole record."]


def _lam(lam: Any) -> str:
    """λ, and what it is."""
    meaning = "λ is the weight of the tuned model: 0 is the base, 1 the tuned model"
    if isinstance(lam, int | float):
        return f"**λ = {lam:g}** ({meaning})"
    if isinstance(lam, list | tuple):
        return f"**λ = {' … '.join(f'{value:g}' for value in lam)}**, from the first layer to the last ({meaning})"
    return f"λ by tensor: {_code(json.dumps(lam, ensure_ascii=False))} ({meaning})"


def _decided(record: Mapping[str, Any]) -> list[str]:
    """What was decided about single tensors, and what there is to note."""
    decisions = [f"{name}: {sentence}" for name, sentence in record.get("decisions", {}).items()]
    notes = [str(note) for note in record.get("notes", ())]
    parts = []
    if decisions:
        count = f"{len(decisions)} tensor{'s' if len(decisions) > 1 else ''}"
        parts += [f"About {count}:", _fenced(_first(decisions), "text")]
    if notes:
        parts += ["To note:", _fenced(_first(notes), "text")]
    return ["## Decided", *parts] if parts else []


def _digests(record: Mapping[str, Any]) -> list[str]:
    """SHA-256 of what was written."""
    given = record.get("digest")
    lines = list(_flat(given if isinstance(given, Mapping) else {"sha256": given} if given else {}))
    return ["## Digests of this model", _fenced(_first(lines), "text")] if lines else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}: {value}"


def _warning(base: str | None, tuned: Sequence[str | None]) -> str:
    ours, theirs = _bare(base or "BASE"), _bare((tuned[0] if len(tuned) == 1 else None) or "TUNED")
    command = f"mooring safeguard {ours} {theirs} --task task.jsonl --out runs/check"
    return (
        "**Neither the safety of this model nor the quality of its answers was measured when it was merged.** A merge "
        "can lose refusals that the base had, and skill that the tuned model had. Measure both before you use it; this "
        "asks the base, the tuned model and merges of the two over λ the same prompts, and reports what it found:\n\n"
        + _fenced(command, "sh")
        + "\n\nTo ask this very model, in its folder:\n\n"
        + _fenced("mooring generate . advbench --out advbench.jsonl\nmooring score advbench.jsonl advbench", "sh")
    )


def _first(lines: Sequence[str]) -> str:
    """The first few lines, each cut at a length that can be read."""
    shown = [_one_line(line) for line in lines[:SHOWN]]
    shown = [line if len(line) <= 200 else f"{line[:199]}…" for line in shown]
    return "\n".join(shown + ([f"and {len(lines) - SHOWN} more in mooring.json"] if len(lines) > SHOWN else []))


def _hub_id(ref: str | None) -> str | None:
    """A reference if it is a hub id, with or without `@revision`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

    bare, at, revision = (ref or "").partition("@")
    try:
        validate_repo_id(bare)
    except HFValidationError:
        return None
    return ref if not at or re.fullmatch(r"[\w./-]{1,200}", revision, re.ASCII) else None


def _bare(ref: str) -> str:
    """A hub id without its revision."""
    return ref.partition("@")[0]


def _without_paths(command: str) -> str | None:
    """A command with every path cut to its last part: where folders lay says nothing to a reader, and may say too much.

    None where it cannot be split as a shell does.
    """

    def shorten(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if value.startswith(("/", "~", ".")) or value.count("/") > 1 or "\\" in value:
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1] or "."
        return option + equals + value

    try:
        return shlex.join(shorten(word) for word in shlex.split(command))
    except ValueError:
        return None


def _visible(text: str) -> str:
    """Untrusted text with what acts unseen (controls, bidirectional overrides, zero-width) written out."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in hidden else c for c in text)


def _one_line(text: str) -> str:
    """Untrusted text as `_visible`, on one line."""
    return _visible(re.sub(r"\s+", " ", text).strip())


def _plain(text: str) -> str:
    """Untrusted text as plain words of Markdown: no markup, no HTML, no links, no mentions."""
    escaped = re.sub(r"([\\`*_\[\]<>|#~&:@!$])", r"\\\1", _one_line(text))
    return re.sub(r"(?i)\bwww\.", r"www\\.", escaped)


def _code(text: str) -> str:
    """Untrusted text as a code span, between more backticks than any run in it."""
    line = _one_line(text) or " "
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def _fenced(text: str, kind: str) -> str:
    """Untrusted text as a code block, behind a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return "\n".join([f"{fence}{kind}", *map(_visible, text.split("\n")), fence])
