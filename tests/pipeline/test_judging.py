"""Which judges need the room of the models, and when their engines are closed."""

from pathlib import Path
from typing import Any

import pytest

from mooring.config import Judge
from mooring.pipeline import judging
from mooring.pipeline.judging import Judging

SERVER = {"engine": "openai", "base_url": "http://localhost:1/v1"}


class Closable:
    """An engine that remembers whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("section", "needs"),
    [
        ({"name": "rules"}, False),
        ({"name": "wildguard"}, True),
        ({"name": "wildguard", "engine": "vllm"}, True),
        ({"name": "wildguard", "engine": "vllm", "gpu_memory": 0.3}, False),
        ({"name": "wildguard", **SERVER}, False),
    ],
)
def test_a_judge_needs_room_unless_it_has_a_share_or_a_server(section: dict[str, Any], needs: bool) -> None:
    judges = Judging([Judge.model_validate(section)])
    assert judges.needs_room(section["name"]) is needs


@pytest.mark.parametrize(("gpu_memory", "stays"), [(None, False), (0.3, True)])
def test_a_judge_that_runs_beside_the_models_is_closed_at_the_end_only(
    gpu_memory: float | None, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Closable()
    monkeypatch.setattr(judging, "load_engine", lambda *_: engine)
    monkeypatch.setattr(Judging, "_folder", lambda self, judge: None)
    judges = Judging([Judge(name="wildguard", engine="vllm", gpu_memory=gpu_memory)])
    assert judges._engine("wildguard") is engine
    judges.close(beside=False)
    assert engine.closed is not stays
    judges.close()
    assert engine.closed


def test_judges_elsewhere_need_no_room_here_and_name_the_folders_that_have_to_be_seen(tmp_path: Path) -> None:
    sections = [
        Judge(name="rules"),
        Judge(name="llm", model=str(tmp_path)),
        Judge.model_validate({"name": "llm", "model": "served", **SERVER}),
    ]
    judges, opened = Judging(sections), list[tuple[str, Path]]()
    assert judges.folders() == [tmp_path]
    engine: Any = Closable()

    def open_elsewhere(name: str, folder: Path, section: Judge) -> Any:
        opened.append((name, folder))
        return engine

    judges.open_remote = open_elsewhere
    assert not any(judges.needs_room(name) for name in judges.sections)
    assert judges._engine("llm-1") is engine
    judges.close()
    assert not engine.closed
    assert opened == [("llm-1", tmp_path)]
