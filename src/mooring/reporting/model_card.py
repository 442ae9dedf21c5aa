"""The model card of a run's chosen model: the README.md that the hub shows, and what the hub reads of it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.models.resolve import hub_name
from mooring.reporting.results import COLUMNS, Results, is_task
from mooring.reporting.tables import markdown_table, measures, summary_table
from mooring.text import MISSING, fenced, markdown, name_of, one_line, percent

NAME = "model-card.md"
"""Its file beside the report."""
LIMITS = (
    "ASR counts plain requests, asked once. Attacks that rephrase, persuade or optimise a prompt, long "
    "conversations, tools and other languages were not tried.",
    "An interval says how far the number could move with other prompts of the same kind. It says nothing of other "
    "kinds of prompts, of another judge, or of another seed of tuning.",
    "A merge keeps what the base would not do only as far as it was measured. Measure it on prompts of your own before "
    "you use it.",
)
"""What no number of the card says."""


def card(results: Results, *, terms: Mapping[str, str] | None = None) -> str:
    """README.md of the chosen model: front matter for the hub, what it was made from, λ and why, numbers, limits.

    It holds no prompt and no model's answer. Names and references are shown as plain text, paths by their last part.

    Args:
        results: A run's results.
        terms: The base's license as front matter (`license`, `license_name`, `license_link`); without, none is named.
    """
    choice = results.choice
    name = f"{one_line(str(results.recipe.get('name', 'run')))}, {results.choice.point.label}"
    parts = [
        f"---\n{_metadata(results, name, terms or {}).to_yaml()}\n---",
        f"# {markdown(name)}",
        _what_it_is(results),
        "## Made from",
        "\n".join(_made_from(results)),
        "## λ, and why",
        "" if choice.within else "**No λ that was tried is within the bound.**",
        f"**{markdown(results.choice.point.label)}**, the weight of the tuned model: 0 is the base, 1 the tuned model. "
        + markdown(choice.reason),
        "λ was chosen on some of the prompts (validation). The numbers below are of other prompts (test).",
        "## Measured",
        markdown_table(summary_table(results)),
        f"{summary_table(results).caption} Safety is judged by {_judges(results)}.",
        _kept(results),
        "## Limits",
        "\n".join(f"- {markdown(limit)}" for limit in (*LIMITS, *results.notes)),
        "## How it was made",
        fenced(_recipe(results.recipe), "yaml"),
        "Made with " + ", ".join(f"{markdown(k)} {markdown(v)}" for k, v in sorted(results.versions.items())) + ".",
    ]
    if terms:
        parts += ["## License", "The license named above is the base's. The tuning data may bring terms of their own."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(results: Results, name: str, terms: Mapping[str, str]) -> Any:
    """What the hub reads, as `huggingface_hub.ModelCardData`."""
    from huggingface_hub import ModelCardData

    recipe = results.recipe
    refs = [str(recipe[key]) for key in ("base", "tuned") if recipe.get(key)]
    ids = list(dict.fromkeys(found for ref in refs if (found := hub_name(ref))))
    method = _method(results)
    scores = list(_eval_results(results))
    more: dict[str, Any] = {key: terms[key] for key in ("license", "license_name", "license_link") if key in terms}
    if ids:
        more["base_model_relation"] = "merge"
    if scores:  # the hub's reader refuses numbers without the model's name
        more |= {"model_name": name, "eval_results": scores}
    return ModelCardData(
        base_model=ids or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "mooring", "safety", method],
        **more,
    )


def _method(results: Results) -> str:
    return re.sub(r"[^\w-]", "", str(results.recipe.get("merge", {}).get("method", "")), flags=re.ASCII) or "unknown"


def _eval_results(results: Results) -> Iterator[Any]:
    """The merged model's numbers on the test split, one each, in the hub's form: rates as shares, not percent."""
    from huggingface_hub import EvalResult

    for measure in measures(results):
        score = results.score("merged", measure)
        if score is None or score.value is None:
            continue
        bounds = (
            {} if score.low is None or score.high is None else {"low": _round(score.low), "high": _round(score.high)}
        )
        dataset = _dataset(results.recipe, measure)
        yield EvalResult(
            task_type="text-generation",
            task_name="task" if is_task(measure) else "safety",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=one_line(measure),
            metric_name=f"{name_of(measure)}, by {one_line(score.method)}" if score.method else name_of(measure),
            metric_value=_round(score.value),
            metric_args={"n": score.n, **bounds, **_others(results, measure)},
        )


def _others(results: Results, measure: str) -> dict[str, float]:
    """The same number of base and tuned model, to read it by."""
    found = {model: results.score(model, measure) for model in COLUMNS if model != "merged"}
    return {model: _round(score.value) for model, score in found.items() if score and score.value is not None}


def _round(value: float) -> float:
    return round(value, 4)


def _dataset(recipe: Mapping[str, Any], measure: str) -> str:
    """The prompts that a score rests on, by the names that the recipe gives them."""
    name, _, part = measure.partition("@")[0].partition(":")
    if name == "lm_eval":
        return one_line(part)
    if name == "asr" and part:
        return _short(part)
    field = {"asr": "safety", "refusal": "safety", "over_refusal": "over_refusal", "ordinary_refusal": "ordinary"}
    refs = recipe.get("score", {}).get(field.get(name, "task"))
    refs = [refs] if isinstance(refs, str) else refs or []
    return " + ".join(_short(str(ref)) for ref in refs) or "unnamed"


def _short(ref: str) -> str:
    """A reference; of a path, which may say too much and tells a reader nothing, the last part."""
    return one_line(Path(ref).name if ref.startswith((".", "~", "/")) else ref)


def _what_it_is(results: Results) -> str:
    method = _method(results)
    text = (
        f"A tuned model merged back towards the aligned model that it came from, by the rule `{method}`, with Mooring."
    )
    asr = [results.score(model, "asr") for model in COLUMNS]
    if any(score is None or score.value is None for score in asr):
        return text
    base, tuned, merged = (f"{100 * score.value:.1f} %" for score in asr if score and score.value is not None)
    return f"{text} Attack success rate: base {base}, tuned {tuned}, **this model {merged}**."


def _made_from(results: Results) -> Iterator[str]:
    """Base and tuned model with their digests; what is on the hub with its address."""
    refs = {"base": results.recipe.get("base"), "tuned": results.recipe.get("tuned")}
    for role in ("base", "tuned"):
        about = results.models.get(role, {})
        ref, source, digest = refs[role], about.get("source", "unknown"), about.get("digest", "")
        found = hub_name(str(ref)) if ref else None
        where = re.sub(r"(?<!\S)[.~]{0,2}/[^\s,]*", lambda path: _short(path[0]), source)
        name = f"[{markdown(where)}](https://huggingface.co/{found})" if found else markdown(where)
        yield f"- {role}: {name}, digest `{digest if re.fullmatch('[0-9a-f]+', digest) else MISSING}`"
    tune = results.recipe.get("tune")
    if isinstance(tune, Mapping):
        data = ", ".join(_short(str(ref)) for ref in tune.get("data", ()))
        yield f"- tuned on: {markdown(data)}, LoRA rank {markdown(str(tune.get('r')))}"


def _judges(results: Results) -> str:
    first, *more = [markdown(judge) for judge in results.judges] or ["nobody"]
    beside = f"; beside it: {', '.join(more)}" if more else ""
    return f"**{first}**{beside}"


def _kept(results: Results) -> str:
    """How much of the tuning is left, task score by task score."""
    kept = [(name, share) for name, share in sorted(results.gains.items()) if share is not None and "/" not in name]
    if not kept:
        return ""
    said = ", ".join(f"{percent(share)} in {name_of(name).partition(' (')[0]}" for name, share in kept)
    return f"Of what tuning gained over the base, this model keeps {markdown(said)}."


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
