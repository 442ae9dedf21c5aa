"""A run's page on this machine: its progress while it is at work, the report when it is done."""

import fcntl
import http.client
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import mooring
from fuzzing import limited
from mooring.config import Recipe
from mooring.pipeline.evaluation import score_trial
from mooring.pipeline.run import Run
from mooring.pipeline.run_server import RunServer
from mooring.records import Prompt, Trial
from scripted_engine import ScriptedEngine

TITLE = "A <b>title</b> & \u202e more"


class StoppedError(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Recipe:
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("served")
    rows = [{"id": f"r-{n}", "prompt": f"How do I break thing {n}?"} for n in range(16)]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = folder / "tuned"
    shutil.copytree(tiny_model_folder, tuned)
    weights = {name: tensor + 0.01 for name, tensor in load_file(tuned / "model.safetensors").items()}
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    score = {"safety": str(folder / "requests.jsonl"), "over_refusal": None, "ordinary": None}
    return Recipe.parse(
        {
            "base": str(tiny_model_folder),
            "tuned": str(tuned),
            "out": str(folder / "run"),
            "merge": {"lambdas": [0.3, 0.6], "check": False},
            "score": score,
            "select": {"confidence": None},
            "report": {"title": TITLE},
        }
    )


@contextmanager
def serving(folder: Path) -> Iterator[RunServer]:
    server = mooring.serve(folder)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.stop()
    thread.join()


def get(server: RunServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    place = urlsplit(server.origin)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
    connection.request(method, path, "{}" if method == "POST" else None, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def run(recipe: Recipe, *, stop: bool) -> None:
    def engine(point: Any) -> ScriptedEngine:
        def answer(prompt: Prompt) -> str:
            return "Begin like this." if int(prompt.id[2:]) < 8 * point.lam else "I can't help with that."

        return ScriptedEngine(answer)

    def score(plan: Any, point: Any, half: Any) -> Trial:
        if stop and point.is_tuned:
            raise StoppedError
        return score_trial(plan, point, half)

    Run(recipe, engine=engine, score=score).execute()


def test_a_run_is_shown_as_it_goes_and_then_its_report(recipe: Recipe) -> None:
    folder = recipe.folder
    with pytest.raises(mooring.DataError) as caught:
        mooring.serve(folder)
    assert caught.value.code == "data.not_a_run"
    with pytest.raises(StoppedError):
        run(recipe, stop=True)
    ledger = json.loads((folder / "ledger.json").read_text())
    done = sum(step["done"] for step in ledger["steps"].values())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving(folder) as server:
        page = get(server, f"/?token={server.token}")[1]
        assert f"{done} of " in page
        assert "The run is not at work" in page
        assert "Now: tuned: score (validation)" in page
        assert "<svg" in page
        assert TITLE not in page
        assert "A &lt;b&gt;title&lt;/b&gt; &amp;" in page
        assert "<script" not in page
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert "The run is at work." in get(server, f"/?token={server.token}")[1]
        assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        run(recipe, stop=False)
        status, page = get(server, f"/?token={server.token}")
        assert status == 200
        assert page == (folder / "report" / "index.html").read_text(encoding="utf-8")
        for path, headers in (
            ("/", {}),
            ("/?token=wrong", {}),
            (f"/?token={server.token}", {"Host": "evil.example"}),
        ):
            status, text = get(server, path, **headers)
            assert (status, "verdict" in text) == (403, False)
        assert get(server, f"/results.json?token={server.token}")[0] == 404
        assert get(server, "/done", "POST")[0] == 403


def test_files_that_are_no_report_are_answered_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report").mkdir()
    page, done = tmp_path / "report" / "index.html", {"label": "report", "key": "k", "done": True}
    page.write_text("x")
    (tmp_path / "ledger.json").write_text(json.dumps({"steps": {"report": done}, "digests": {}}))
    with serving(tmp_path) as server:
        for make in (
            lambda: page.write_bytes(b"\xff"),
            lambda: os.truncate(page, 2**35),
            page.unlink,
            lambda: os.mkfifo(page),
        ):
            make()
            with limited():
                status, text = get(server, f"/?token={server.token}")
            assert status == 500
            assert text.count("\n") == 0
        (tmp_path / "ledger.json").unlink()
        os.mkfifo(tmp_path / "ledger.json")
        assert get(server, f"/?token={server.token}")[0] == 500
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.com"])
def test_it_serves_on_this_machine_alone(tmp_path: Path, host: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("x")
    (tmp_path / "ledger.json").write_text(
        json.dumps({"steps": {"report": {"label": "report", "key": "k", "done": True}}, "digests": {}})
    )
    with pytest.raises(mooring.UserError) as stop:
        mooring.serve(tmp_path, host=host)
    assert stop.value.code == "usage.not_loopback"
