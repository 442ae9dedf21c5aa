"""The doctor: packages that import, do not, hang or end the process; and the command."""

import json
import os
from pathlib import Path

import pytest

from mooring.cli import main, render
from mooring.pipeline import doctor
from mooring.pipeline.doctor import Finding, Status, imports


def package(folder: Path, name: str, code: str) -> dict[str, str]:
    """An environment in which a distribution of this name is installed, with this code."""
    (folder / f"{name.replace('-', '_')}.py").write_text(code)
    about = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (about / "RECORD").write_text(f"{name.replace('-', '_')}.py,,\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("print({})", "ok", "good-thing 1.5"),
        ("import nothing_like_it", "broken", "good-thing: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise RuntimeError(chr(27) + '[31mno')", "broken", "good-thing: RuntimeError: ⟨U+001B⟩[31mno"),
        ("import os; os._exit(7)", "broken", "the import ended the process (exit code 7): no message"),
        ("import time; time.sleep(60)", "broken", "importing good-thing took more than 3 s"),
    ],
)
def test_a_package_is_really_imported(tmp_path: Path, code: str, status: str, detail: str) -> None:
    found = imports("good", ["good-thing"], 3 if "sleep" in code else 60, package(tmp_path, "good-thing", code))
    assert (found.status, found.detail) == (status, detail)
    assert bool(found.fix) == (status != "ok")


def test_what_is_not_installed_is_named_with_the_way_to_get_it() -> None:
    found = imports("pandas", ["no-such-package", "pytest"], 30)
    assert (found.status, found.detail) == ("missing", "not installed: no-such-package")
    assert found.fix == "pip install 'mooring[pandas]'"


def test_the_extras_are_those_of_the_package() -> None:
    found = doctor.requirements()
    assert "torch" in found["mooring"]
    assert found["pandas"] == ["pandas"]
    assert not set(found) & {"dev", "peers"}


def test_little_room_is_said() -> None:
    assert doctor.disk(0).status == "ok"
    assert doctor.disk(2**80).status == "broken"


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in doctor.hub().detail


def test_a_hub_out_of_reach_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = doctor.hub()
    assert found.status == "broken"
    assert found.detail.startswith("http://127.0.0.1:9 is out of reach")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("broken", 2)])
def test_the_command(
    status: Status, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        Finding(name="mooring", status=status, detail="torch 2.11", fix="upgrade" if code else "", needed=True),
        Finding(name="gpu", status="missing", detail="none", fix="get one"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda timeout: made)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert (ended.value.code or 0) == code
    assert json.loads(capsys.readouterr().out) == [each.to_dict() for each in made]
    render.findings(made, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines if "gpu" in line or "get one" in line] == ["– gpu      none", "get one"]
