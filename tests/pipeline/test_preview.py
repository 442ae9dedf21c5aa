"""What `mooring data` says of a data set."""

import json
from pathlib import Path

import pytest

import mooring
from mooring.cli import main

ROWS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], "score": 3},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}] * 2},
    {"question": "What is\x1b[31m this?", "answer": "A test.", "category": "x"},
    {"prompt": "Only a prompt", "system": "Be brief."},
    {"prompt": "Only a prompt", "system": "Be brief."},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_shapes_counts_and_lengths(file: Path) -> None:
    found = mooring.preview_data(file)
    assert (found.rows, found.responses, found.unit) == (5, 3, "characters")
    assert found.shapes == {"user assistant": 2, "(user assistant)×2": 1, "system user": 2}
    assert found.categories == {"x": 1}
    assert found.prompt.longest == len("Be brief.Only a prompt")
    assert found.response is not None
    assert (found.response.median, found.response.p95) == (6, 7)
    assert found.example == "[user] Hi\n[assistant] Hello."
    assert any("`score` (1 of 5 rows)" in note for note in found.notes)
    assert "1 rows are the same as an earlier one" in found.notes


def test_a_model_shows_its_special_tokens_and_counts_tokens(file: Path) -> None:
    found = mooring.preview_data(file, model="bundled:smollm2-135m-instruct", row=2)
    assert found.unit == "tokens"
    assert found.example.count("<|im_start|>user\nHi<|im_end|>") == 2
    assert found.example.endswith("<|im_start|>assistant\nYes?<|im_end|>")
    assert found.origin == f"{file}:2"


def test_a_row_that_is_not_there_is_refused(file: Path) -> None:
    with pytest.raises(mooring.DataError) as caught:
        mooring.preview_data(file, row=6)
    assert caught.value.code == "data.no_row"


def test_the_command_prints_nothing_that_acts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", str(file), "--row", "3"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "5 rows, 3 with a response" in out
    assert "[user] What is⟨U+001B⟩[31m this?" in out
