"""Every result type of the public API gives plain JSON values and a data frame."""

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import mooring
from mooring.export import Record
from mooring.stats import compare_rates

POINT = mooring.MergePoint(0.4)
SCORE = mooring.Score(
    name="asr", value=0.1, low=0.05, high=0.2, n=70, better="lower", method="refusal rules", each={"a": 0.0, "b": 1.0}
)
MESSAGE = mooring.Message("user", "Hello")
CHOICE = mooring.Choice(point=POINT, within=True, bound=0.1, metric="lam", reason="So.")
TRIAL = mooring.Trial(point=POINT, method="linear", split="test", scores={"asr": SCORE, "refusal": SCORE})
AGREEMENT = mooring.Agreement(kappa=0.8, same=9, n=10, missed=0, disagreements=("a",))
LOGITS = mooring.LogitComparison(
    model="the merge at λ = 1", reference="the tuned model", difference=1e-6, allowed=1e-4, same_top=1.0, passed=True
)
MEASURE = mooring.ServedMeasure(
    name="asr", merged=SCORE, served=SCORE, difference=compare_rates({"a": False, "b": False}, {"a": False, "b": True})
)
CORRECTED = mooring.Corrected(
    split="test",
    point=POINT,
    n=70,
    labelled=20,
    judged=(0.1, 0.05, 0.2),
    corrected=(0.12, 0.04, 0.25),
    rogan_gladen=None,
    judged_difference=(0.02, -0.02, 0.08),
    corrected_difference=(0.03, -0.06, 0.12),
    needed=30,
)
LENGTHS = mooring.Lengths(median=2, p95=9, longest=9)
CHECK = mooring.VerdictCheck(name="asr", outcome="passed", sentence="So", value=0.0, upper=0.04, allowed=0.1, n=70)
VERDICT = mooring.RunVerdict(decision="ship", sentence="So.", confidence=0.95, judge="rules", checks=[CHECK])
EVALS = mooring.EvalDifference(
    metric="match",
    first=0.5,
    second=0.75,
    difference=0.25,
    low=-0.1,
    high=0.5,
    p=0.25,
    method="mcnemar",
    n=12,
    answers=(12, 12),
    only_second=3,
)
RECORDS: dict[str, Any] = {
    "Agreement": AGREEMENT,
    "Choice": CHOICE,
    "Completion": mooring.Completion(prompt_id="a", text="Hi", tokens=2, finish="stop"),
    "Corrected": CORRECTED,
    "EvalDifference": EVALS,
    "DataPreview": mooring.DataPreview(
        ref="task.jsonl",
        rows=2,
        responses=0,
        shapes={"user": 2},
        categories={},
        unit="characters",
        prompt=LENGTHS,
        response=None,
        example="[user] Hi",
        origin="task.jsonl:1",
    ),
    "Event": mooring.Event(step="merge", kind="progress", done=1, total=2),
    "Exported": mooring.Exported(Path("m-F16.gguf"), Path("Modelfile"), "f16", "llama", 20),
    "Finding": mooring.Finding(name="gpu", status="missing", detail="none", fix="install one"),
    "PluginInfo": mooring.PluginInfo(group="judges", name="mine", source="mine 1.0"),
    "Forecast": mooring.Forecast(stages=(("merge", "5 λ"),), facts={"run folder": "new"}, disk=1, memory=None),
    "Gain": mooring.Gain(value=0.8, low=0.7, high=0.9, n=70),
    "Inspection": mooring.Inspection(base="b", tuned="t", kind="lora"),
    "JudgeError": mooring.JudgeError(
        judge="rules",
        labels=20,
        annotators={"ana": 20},
        unsettled=0,
        unknown=0,
        sensitivity=None,
        specificity=None,
        kappa=None,
        agreement=[],
        models=[CORRECTED],
    ),
    "Lengths": LENGTHS,
    "LogitComparison": LOGITS,
    "MethodComparison": mooring.MethodComparison(
        title="t", recipe={}, base={"source": "b", "digest": "0"}, base_trials=[TRIAL], tuned=[], series=[], judges=[]
    ),
    "ExtractedLora": mooring.ExtractedLora(folder=Path("lora"), rank=8, errors={"w": 0.1}, left_out={"norm": 0.01}),
    "MergeCheck": mooring.MergeCheck(passed=True, logits=[LOGITS], tensors=20, reference="the formula"),
    "MergePoint": POINT,
    "Message": MESSAGE,
    "Outcome": mooring.Outcome(Path("run"), Path("run/model"), CHOICE, Path("run/report"), True, VERDICT),
    "Paper": mooring.Paper(Path("out"), ["table1.md"], 1, []),
    "Prompt": mooring.Prompt(id="a", messages=(MESSAGE,)),
    "Rejudged": mooring.Rejudged(POINT, "test", "safety", "rules", {"asr": SCORE}, AGREEMENT),
    "Reply": mooring.Reply(point=POINT, text="Hi", tokens=2, finish="stop"),
    "Results": mooring.Results(
        verdict=VERDICT, title="t", recipe={}, models={}, trials=[TRIAL], choice=CHOICE, judges=["rules"]
    ),
    "RunVerdict": VERDICT,
    "SamplingParams": mooring.SamplingParams(),
    "Score": SCORE,
    "ServedMeasure": MEASURE,
    "ServedVerdict": mooring.ServedVerdict(
        run=Path("run"),
        answers=Path("run/served/m"),
        base_url="http://localhost:8000/v1",
        model="m",
        point=POINT,
        holds=True,
        reason="So.",
        measures=[MEASURE, dataclasses.replace(MEASURE, name="refusal", difference=None)],
        notes=[],
    ),
    "Trial": TRIAL,
    "Verdict": mooring.Verdict(prompt_id="a", harmful=False, refused=True, judge="rules"),
    "VerdictCheck": CHECK,
}
ROWS = {"ExtractedLora": 2, "Inspection": 0, "ServedVerdict": 2, "Trial": 2, "Results": 2, "MethodComparison": 2}
"""Types whose data frame does not have one row."""


def test_every_exported_dataclass_is_a_record_and_has_an_example_here() -> None:
    exported = {name: getattr(mooring, name) for name in mooring.__all__}
    types = {name for name, value in exported.items() if inspect.isclass(value) and dataclasses.is_dataclass(value)}
    assert types == set(RECORDS)
    assert all(issubclass(exported[name], Record) for name in types)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_plain_json_and_a_data_frame(name: str) -> None:
    record = RECORDS[name]
    json.dumps(record.to_dict(), allow_nan=False)
    frame = record.to_pandas()
    assert len(frame) == ROWS.get(name, 1)
    assert list(frame.columns) == list(dict.fromkeys(key for row in record.to_rows() for key in row))


def test_rates_stay_between_0_and_1() -> None:
    frame = RECORDS["Results"].to_pandas()
    assert list(frame["value"]) == [0.1, 0.1]
    assert list(frame["lam"]) == [0.4, 0.4]


def test_results_in_collections_make_one_data_frame() -> None:
    reply = RECORDS["Reply"]
    assert len(mooring.to_pandas([[reply, reply], [reply]])) == 3  # what `compare` returns
    assert list(mooring.to_pandas({"asr": SCORE, "refusal": SCORE})["n"]) == [70, 70]  # what `score` returns
    with pytest.raises(TypeError):
        mooring.to_pandas(["no record"])


def test_without_pandas_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(mooring.MissingExtraError) as caught:
        SCORE.to_pandas()
    assert caught.value.code == "extra.pandas"
    assert "mooring[pandas]" in caught.value.hint
