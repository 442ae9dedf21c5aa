"""Task metrics, and the registry of them."""

import pytest

from mooring.errors import DataError
from mooring.metrics import METRICS, find_metric, is_task_metric, needs_completions, needs_likelihoods
from mooring.records import Completion, Likelihood, Message, Prompt, Score
from mooring.scoring.task import (
    TASK_METRICS,
    TaskData,
    call_match_score,
    default_metrics,
    exact_match_score,
    response_loss_score,
    task_scores,
)


def prompts(*references: str | None) -> list[Prompt]:
    return [
        Prompt(id=str(i), messages=(Message("user", "x"),), reference=r, origin=f"t.jsonl:{i + 1}")
        for i, r in enumerate(references)
    ]


def completions(*texts: str) -> list[Completion]:
    return [Completion(prompt_id=str(i), text=t, tokens=1, finish="stop") for i, t in enumerate(texts)]


def texts(prompts: list[Prompt], completions: list[Completion]) -> TaskData:
    return TaskData(prompts=prompts, completions=completions)


def loss(*likelihoods: Likelihood) -> Score:
    return response_loss_score(TaskData(likelihoods=likelihoods))


def test_every_task_metric_has_a_function_and_a_description() -> None:
    assert set(TASK_METRICS) == {name for name, metric in METRICS.items() if metric.kind == "task"}


def test_a_score_has_the_metric_of_its_name() -> None:
    assert [find_metric(name) for name in ("asr@wildguard", "asr:hex-phi", "pass@10", "lm_eval:bbh", "pass@0")] == [
        METRICS["asr"],
        METRICS["asr"],
        METRICS["pass@k"],
        None,
        None,
    ]
    names = ("pass@10", "call_match", "pass@k", "asr", "call_match@j", "win_rate")
    assert [name for name in names if is_task_metric(name)] == ["pass@10", "call_match"]


def test_only_response_loss_needs_likelihoods_and_nothing_else() -> None:
    assert not needs_completions(["response_loss"])
    assert needs_completions(["response_loss", "pass@1"])
    assert needs_likelihoods(["exact_match", "response_loss"])
    assert not needs_likelihoods(["exact_match", "lm_eval:bbh"])


def test_scores_are_in_the_order_of_the_metrics_and_of_the_first_samples() -> None:
    data = TaskData(
        prompts=prompts("f()"),
        completions=[*completions("f()"), Completion(prompt_id="0", text="g()", tokens=1, finish="stop", sample=1)],
        likelihoods=[Likelihood(prompt_id="0", nll=1.0, tokens=2)],
    )
    scores = task_scores(("response_loss", "exact_match", "call_match"), data)
    assert [(name, score.name, score.value) for name, score in scores.items()] == [
        ("response_loss", "response_loss", 0.5),
        ("exact_match", "exact_match", 1.0),
        ("call_match", "call_match", 1.0),
    ]


def test_call_match_counts_calls_that_mean_the_same() -> None:
    score = call_match_score(texts(prompts("f(a=1, b='x')", "g()"), completions("f(b=\"x\", a='1')", "Sure: g()")))
    assert (score.value, score.n, score.details) == (0.5, 2, {"yes": 1, "total": 2})
    assert score.better == "higher"


def test_exact_match_leaves_white_space_out() -> None:
    score = exact_match_score(texts(prompts("a  b\nc", "d"), completions(" a b c ", "D")))
    assert score.value == 0.5


def test_response_loss_is_a_mean_over_tokens_not_prompts() -> None:
    made = [Likelihood(prompt_id="0", nll=2.0, tokens=1), Likelihood(prompt_id="1", nll=2.0, tokens=3)]
    score = loss(*made)
    assert score.value == 1.0
    assert score.details == {"tokens": 4}
    assert score.low is not None
    assert score.high is not None
    assert score.low <= 1.0 <= score.high
    assert loss(*made) == score


def test_a_score_is_the_mean_of_what_each_prompt_scored() -> None:
    same = call_match_score(texts(prompts("f(a=1)", "g()", "h()"), completions("f(a=1)", "f()", "h()")))
    assert same.each == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert not same.weights
    rate = loss(*[Likelihood(prompt_id=str(n), nll=2.0 + n, tokens=1 + n) for n in range(3)])
    assert rate.each == {"0": 2.0, "1": 3.0, "2": 4.0}
    assert rate.weights == {"0": 1, "1": 2, "2": 3}
    assert rate.value == sum(rate.each.values()) / sum(rate.weights.values())


def test_scores_of_nothing_are_undefined() -> None:
    assert loss(Likelihood(prompt_id="0", nll=0.0, tokens=0)).value is None
    assert call_match_score(TaskData()).value is None
    assert call_match_score(TaskData()).low is None


@pytest.mark.parametrize(
    ("data", "code", "where"),
    [
        (texts(prompts(None), completions("a")), "data.no_reference", "t.jsonl:1:"),
        (texts(prompts("a", "b"), completions("a")), "data.no_completion", "t.jsonl:2:"),
        (TaskData(), "data.no_likelihoods", "response_loss:"),
    ],
)
def test_missing_data_is_named(data: TaskData, code: str, where: str) -> None:
    metric = "response_loss" if code == "data.no_likelihoods" else "exact_match"
    with pytest.raises(DataError) as caught:
        task_scores([metric], data)
    assert caught.value.code == code
    assert caught.value.message.startswith(where)


def test_default_metrics_look_at_the_references() -> None:
    assert default_metrics(["f(a=1)", "g.h()"]) == ("call_match", "response_loss")
    assert default_metrics(["f(a=1)", "Oslo"]) == ("response_loss", "exact_match")
    assert default_metrics([]) == ("response_loss", "exact_match")
