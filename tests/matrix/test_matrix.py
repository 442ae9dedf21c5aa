"""A few architectures of the matrix in docs/models.md: nothing is wrong, and a refusal has a reason."""

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from matrix.build import RESULTS, page
from matrix.cells import KINDS, WAYS, cells
from matrix.tiny import architectures, build_tokenizer, tiny_model

FEW = ("qwen2", "qwen3_moe", "gpt_oss", "gemma3", "qwen3_5")


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_no_cell_is_wrong(name: str, tmp_path: Path) -> None:
    found = cells(tiny_model(name), build_tokenizer(), tmp_path)
    for kind, ways in found.items():
        for way, cell in ways.items():
            assert cell.outcome != "wrong", (kind, way, cell)
            assert bool(cell.code) is (cell.outcome == "refused")
    assert found["full"]["merge"].outcome == found["lora"]["merge"].outcome == "works"


def test_the_page_is_that_of_the_results() -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    tried = [result for result in results.values() if "cells" in result]
    assert len(tried) >= 40
    assert {*results} <= {*architectures()}
    outcomes = [result["cells"][kind][way]["outcome"] for result in tried for kind in KINDS for way in WAYS]
    assert "wrong" not in outcomes
    assert page(results).count("| `") == len(tried) + 1


def test_the_column_of_vllm_tells_what_was_started() -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    last = [row.split(" | ")[-1].strip(" |") for row in page(results).splitlines() if row.startswith("| `")]
    marks = collections.Counter(mark for mark in last if mark != "vLLM")
    assert set(marks) == {"✓", "own", "hf", "–", ""}
    assert marks["✓"] >= 10
