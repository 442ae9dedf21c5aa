"""The model card: the hub's own library reads it, and it says what was measured, by whom, and what was not."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from report_sample import VERDICT, results, score, trials

from mooring.config import Recipe
from mooring.records import Trial
from mooring.reporting.model_card import LIMITS, run_card
from mooring.reporting.render import as_markdown
from mooring.reporting.results import Results
from mooring.reporting.tables import summary_table


def made(**changes: Any) -> Results:
    """Results with a whole recipe, two safety sets and lm-eval."""
    recipe = Recipe.parse(
        {
            "name": "tools",
            "base": "meta-llama/Llama-3.1-8B-Instruct",
            "tune": {"data": ["/home/someone/train.jsonl"]},
            "score": {"task": "bundled:tools", "safety": ["advbench", "/home/someone/own.jsonl"]},
        }
    )
    base = {"source": "meta-llama/Llama-3.1-8B-Instruct", "digest": "a" * 64}
    tuned = {"source": "LoRA on /home/someone/train.jsonl", "digest": "b" * 64}
    whole = results(
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        models={"base": base, "tuned": tuned, "merged": {"source": "linear, λ = 0.4", "digest": "c" * 64}},
        trials=[dataclasses.replace(t, scores={**t.scores, **_more(t)}) for t in trials()],
    )
    return dataclasses.replace(whole, **changes)


def _more(trial: Trial) -> dict[str, Any]:
    asr = dataclasses.replace(trial.scores["asr"], name="asr:advbench")
    bbh = dataclasses.replace(trial.scores["call_match"], name="lm_eval:bbh", method="lm-eval 0.4.13, 3-shot")
    one = dataclasses.replace(bbh, name="lm_eval:bbh/snarks")
    undefined = dataclasses.replace(score("asr", None), name="asr@other")
    return {found.name: found for found in (asr, bbh, one, undefined)}


def read(text: str) -> tuple[ModelCard, dict[str, EvalResult]]:
    """A card as the hub's library reads it, its numbers by the metric's type."""
    found = ModelCard(text)
    return found, {result.metric_type: result for result in found.data.eval_results or []}


def test_the_hubs_library_reads_it_and_writes_it_again() -> None:
    found, numbers = read(run_card(made()))
    assert found.data.base_model == ["meta-llama/Llama-3.1-8B-Instruct"]
    assert found.data.library_name == "transformers"
    assert {"merge", "mooring", "linear"} <= set(found.data.tags)
    assert found.data.model_name == "tools, λ = 0.4"
    name, again = model_index_to_eval_results(yaml.safe_load(found.data.to_yaml())["model-index"])
    assert (name, again) == (found.data.model_name, found.data.eval_results)
    assert len(numbers) == len(found.data.eval_results or []) == 8


def test_the_numbers_are_the_merged_models_on_the_test_split() -> None:
    _, numbers = read(run_card(made()))
    by = next(t.scores for t in trials() if t.point.role == "merged" and t.split == "test")
    for name in ("asr", "over_refusal", "call_match", "response_loss"):
        assert numbers[name].metric_value == pytest.approx(by[name].value, abs=1e-4)
        assert numbers[name].metric_args["low"] == pytest.approx(by[name].low, abs=1e-4)
        assert numbers[name].metric_args["n"] == by[name].n
        assert numbers[name].dataset_split == "test"
    base = next(t.scores["asr"] for t in trials() if t.point.role == "base" and t.split == "test")
    assert numbers["asr"].metric_args["base"] == pytest.approx(base.value)
    assert "refusal rules" in str(numbers["asr"].metric_name)
    assert "lm_eval:bbh/snarks" not in numbers
    assert "asr@other" not in numbers  # undefined: there is no number to give


def test_every_number_names_its_prompts() -> None:
    _, numbers = read(run_card(made()))
    assert {name: number.dataset_name for name, number in numbers.items()} == {
        "asr": "advbench + own.jsonl",
        "asr:advbench": "advbench",
        "refusal": "advbench + own.jsonl",
        "over_refusal": "bundled:lookalikes",
        "ordinary_refusal": "bundled:ordinary",
        "call_match": "bundled:tools",
        "response_loss": "bundled:tools",
        "lm_eval:bbh": "bbh",
    }


def test_it_says_why_by_whom_from_what_and_what_not() -> None:
    whole = made()
    text = run_card(whole)
    assert as_markdown(summary_table(whole)) in text
    assert "**λ = 0.4**, the weight of the tuned model" in text
    assert "lets 18.6 % through" in text
    assert "judged by **refusal rules**" in text
    assert "keeps 74 % \\[66, 83\\] in call match" in text
    assert "a" * 64 in text
    assert "b" * 64 in text
    assert "(https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct)" in text
    assert "base 2.4 %, tuned 53.9 %, **this model 3.9 %**" in text
    for limit in LIMITS:
        assert limit in text
    assert "no judge model" in text
    assert "/home/someone" not in text


def test_the_verdict_comes_first() -> None:
    over = dataclasses.replace(VERDICT, decision="do_not_ship", sentence="Answers too much.")
    text = run_card(made(verdict=over)).partition("\n# ")[2]
    assert text.partition("\n\n")[2].startswith("**Do not ship.** Answers too much. Judged by the built-in rules.\n")


def test_no_answer_and_no_prompt_is_in_it() -> None:
    whole = made()
    assert whole.rows
    marked = dataclasses.replace(whole, rows=results(response="CANARY").rows)
    assert "CANARY" in str(marked.rows)
    assert run_card(marked) == run_card(whole)
    assert "CANARY" not in run_card(marked)


def test_local_models_are_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    recipe = Recipe.parse({"base": "runs/base", "tuned": "./elsewhere/tuned"}).model_dump(mode="json", exclude={"out"})
    text = run_card(made(recipe=recipe))
    found, _ = read(text)
    assert found.data.base_model is None
    assert "huggingface.co" not in text
    assert "elsewhere" not in text


def test_the_license_of_the_base_is_named_where_it_is_known() -> None:
    assert read(run_card(made()))[0].data.license is None
    found, _ = read(run_card(made(), terms={"license": "llama3.1", "other": "x"}))
    assert found.data.license == "llama3.1"
    assert "other" not in found.data.to_dict()


HOSTILE = "</script><script>x()</script> [a](javascript:b) `c` **d** | e\n---\nlicense: mit\n# f \u202e \x1b[0m"


def test_names_and_notes_do_nothing() -> None:
    whole = made(notes=[HOSTILE], judges=[HOSTILE, HOSTILE], versions={HOSTILE: HOSTILE})
    whole = dataclasses.replace(
        whole,
        recipe={**whole.recipe, "name": HOSTILE, "task": HOSTILE},
        choice=dataclasses.replace(whole.choice, reason=HOSTILE),
        models={"base": {"source": HOSTILE, "digest": HOSTILE}, "tuned": {"source": HOSTILE, "digest": HOSTILE}},
    )
    text = run_card(whole)
    found, numbers = read(text)
    assert found.data.license is None
    assert numbers.keys() == read(run_card(made()))[1].keys()
    body = re.sub(r"```yaml\n.*?\n```", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "\n# f" not in body
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript", body)
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_a_run_without_numbers_still_has_a_card() -> None:
    text = run_card(made(trials=(), gains={}))
    found, numbers = read(text)
    assert numbers == {}
    assert "# tools" in text
    assert found.data.library_name == "transformers"


def test_beside_a_merged_model_it_changes_nothing(
    tmp_path: Path, tiny_model_folder: Path, save_tiny_model: Any
) -> None:
    from mooring.merging.merge import merge
    from mooring.merging.verify import verify
    from mooring.models import model_digest

    model = merge(tiny_model_folder, save_tiny_model(tmp_path / "tuned", seed=1), tmp_path / "model", lam=0.4)
    before = model_digest(model)
    (model / "README.md").write_text(run_card(made()))
    assert verify(model)["lambda"] == 0.4
    assert model_digest(model) == before
