import pytest

from mooring.errors import DataError
from mooring.records import Completion, Likelihood, Message, Prompt
from mooring.scoring.task import call_match_score, default_metrics, exact_match_score, response_loss_score


def prompts(*references: str | None) -> list[Prompt]:
    return [
        Prompt(id=str(i), messages=(Message("user", "x"),), reference=r, origin=f"t.jsonl:{i + 1}")
        for i, r in enumerate(references)
    ]


def completions(*texts: str) -> list[Completion]:
    return [Completion(prompt_id=str(i), text=t, tokens=1, finish="stop") for i, t in enumerate(texts)]


def test_call_match_counts_calls_that_mean_the_same() -> None:
    score = call_match_score(prompts("f(a=1, b='x')", "g()"), completions("f(b=\"x\", a='1')", "Sure: g()"))
    assert (score.value, score.n, score.details) == (0.5, 2, {"yes": 1, "total": 2})
    assert score.better == "higher"


def test_exact_match_leaves_white_space_out() -> None:
    score = exact_match_score(prompts("a  b\nc", "d"), completions(" a b c ", "D"))
    assert score.value == 0.5


def test_response_loss_is_a_mean_over_tokens_not_prompts() -> None:
    made = [Likelihood(prompt_id="0", nll=2.0, tokens=1), Likelihood(prompt_id="1", nll=2.0, tokens=3)]
    score = response_loss_score(made)
    assert score.value == 1.0
    assert score.details == {"tokens": 4}
    assert score.low is not None
    assert score.high is not None
    assert score.low <= 1.0 <= score.high
    assert response_loss_score(made) == score


def test_a_score_is_the_mean_of_what_each_prompt_scored() -> None:
    same = call_match_score(prompts("f(a=1)", "g()", "h()"), completions("f(a=1)", "f()", "h()"))
    assert same.each == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert not same.weights
    loss = response_loss_score([Likelihood(prompt_id=str(n), nll=2.0 + n, tokens=1 + n) for n in range(3)])
    assert loss.each == {"0": 2.0, "1": 3.0, "2": 4.0}
    assert loss.weights == {"0": 1, "1": 2, "2": 3}
    assert loss.value == sum(loss.each.values()) / sum(loss.weights.values())


def test_scores_of_nothing_are_undefined() -> None:
    assert response_loss_score([]).value is None
    assert call_match_score([], []).value is None
    assert call_match_score([], []).low is None


def test_a_prompt_without_reference_or_completion_is_named() -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1: has no reference"):
        exact_match_score(prompts(None), completions("a"))
    with pytest.raises(DataError, match=r"t\.jsonl:2: has no completion"):
        exact_match_score(prompts("a", "b"), completions("a"))


def test_default_metrics_look_at_the_references() -> None:
    assert default_metrics(["f(a=1)", "g.h()"]) == ("call_match", "response_loss")
    assert default_metrics(["f(a=1)", "Oslo"]) == ("response_loss", "exact_match")
    assert default_metrics([]) == ("response_loss", "exact_match")
