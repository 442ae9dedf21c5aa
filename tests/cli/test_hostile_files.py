"""Hostile files and places through the commands: one line, exit 2, soon, and nothing is written or copied."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "reporting"))

from report_sample import results, trials

from fuzzing import limited, listing
from mooring.config import Recipe
from mooring.reporting.results import dumps

from .conftest import Run, check_refused, write_task  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow

Make = Callable[[Path], object]


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**35)


CONTENTS: dict[str, Make] = {
    "empty": lambda p: p.write_bytes(b""),
    "{}": lambda p: p.write_text("{}"),
    "[]": lambda p: p.write_text("[]"),
    "null": lambda p: p.write_text("null"),
    "not UTF-8": lambda p: p.write_bytes(b'{"a": "\xff"}'),
    "4,300 digits": lambda p: p.write_text('{"vocab_size": 1' + "0" * 4300 + "}"),
    "deep": lambda p: p.write_text('{"a":' * 100_000),
    "many": lambda p: p.write_text('{"model_type": [' + "[]," * 2_000_000 + "[]]}"),
    "wrong types": lambda p: p.write_text(json.dumps({key: [1, {"x": None}] for key in KEYS})),
    "long name": lambda p: p.write_text(json.dumps(dict.fromkeys(KEYS, "x" * 300))),
    "long shards": lambda p: p.write_text(json.dumps({"weight_map": {"lm_head.weight": "x" * 300 + ".safetensors"}})),
    "fifo": fifo,
    "device": device,
    "sparse": sparse,
}
KEYS = (
    *("model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"),
    *("chat_template", "bos_token", "eos_token", "eos_token_id", "added_tokens", "model", "weight_map", "metadata"),
    *("quantization_config", "text_config", "tokenizer_class", "max_position_embeddings", "rope_scaling"),
)
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "model.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_of_a_model(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, name: str) -> None:
    """Whatever a file of a model is, a merge succeeds without it, or is refused in one line."""
    for kind, make in CONTENTS.items():
        for victim in ("base", "tuned"):
            for place, source in (("base", tiny_model_folder), ("tuned", tuned)):
                shutil.copytree(source, tmp_path / place)
            make(tmp_path / victim / name)
            before = listing(tmp_path)
            with limited():
                code, _, err = run("merge", "base", "tuned", "--lam", 0.5, "--out", "out", "--tokenizer", "tuned")
            assert code in (0, 2), f"{kind} in {victim}: {err}"
            lines = [line for line in err.splitlines() if not line.startswith("mooring: warning: ")]
            assert len(lines) == (code == 2), f"{kind} in {victim}: {err}"
            if (tmp_path / "out").exists():
                assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 2**23
                shutil.rmtree(tmp_path / "out")
            assert listing(tmp_path) == before
            for place in ("base", "tuned"):
                shutil.rmtree(tmp_path / place)


def test_sparse_side_files_are_not_copied(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "base")
    for number in range(10):
        with (tmp_path / "base" / f"{number}.txt").open("wb") as file:
            file.truncate(2**28)
    check_refused(run, "model.large_side_files", "merge", "base", tuned, "--lam", 0.5, "--out", "out", names="base")
    assert not (tmp_path / "out").exists()


HIDDEN: dict[str, Callable[[Path, Path], str]] = {
    "link": lambda base, secret: _link(base / "notes.txt", secret),
    "link to a link": lambda base, secret: _link(base / "notes.txt", Path(_link(base / "more.txt", secret))),
    "relative link": lambda base, secret: _link(base / "notes.txt", Path("..") / secret.relative_to(base.parent)),
    "linked folder": lambda base, secret: _folder(base, secret),
    "template": lambda base, secret: _template(base, secret),
    "link through the snapshot's blobs": lambda base, secret: _link(base / "notes.txt", secret),
}


def _link(path: Path, target: Path) -> str:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return str(path)


def _folder(base: Path, secret: Path) -> str:
    shutil.copy(secret, secret.parent / "secret.jinja")
    return _link(base / "additional_chat_templates", secret.parent)


def _template(base: Path, secret: Path) -> str:
    return _link(base / "chat_template.jinja", secret)


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("options", [(), ("--tokenizer", "tuned")], ids=["base", "tuned"])
def test_nothing_from_elsewhere_is_copied(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, kind: str, options: tuple[str, ...]
) -> None:
    """A link in a model's folder brings no file of this machine into the output, whichever way it is hidden."""
    (tmp_path / "private").mkdir()
    secret = tmp_path / "private" / "key"
    secret.write_text("SECRET")
    root = tmp_path / ("cache/snapshots" if "snapshot" in kind else "models")
    root.mkdir(parents=True)
    if "snapshot" in kind:
        (tmp_path / "cache" / "blobs").symlink_to(secret.parent, target_is_directory=True)
        secret = tmp_path / "cache" / "blobs" / "key"
    for name, source in (("base", tiny_model_folder), ("tuned", tuned)):
        shutil.copytree(source, root / name)
        if kind == "relative link":
            shutil.copytree(secret.parent, root / "private", dirs_exist_ok=True)
            HIDDEN[kind](root / name, root / "private" / "key")
        else:
            HIDDEN[kind](root / name, secret)
    _with_a_token_more(root / "tuned")
    code, _, err = run("merge", root / "base", root / "tuned", "--lam", 0.5, "--out", "out", *options)
    assert code == 0, err
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path


def _with_a_token_more(folder: Path) -> None:
    """Add a token to a tokenizer, and take its template, so that a merge gives it that of the base."""
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    entry = {**data["added_tokens"][-1], "content": "<|more|>", "id": max(data["model"]["vocab"].values()) + 9}
    data["added_tokens"].append(entry)
    file.write_text(json.dumps(data))
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def test_a_link_in_a_merged_model_is_not_pushed(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("merge", tiny_model_folder, tuned, "--lam", 0.5, "--out", "out")
    assert code == 0, err
    monkeypatch.setattr("mooring.models.upload._hub", lambda hub_id: None)
    monkeypatch.setattr("mooring.models.upload._look", lambda *_: None)
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "out" / "notes.txt").symlink_to(tmp_path / "secret")
    check_refused(run, "output.hub_link_away", "push", "out", "me/mine", names="notes.txt")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished run folder with made-up numbers."""
    folder = tmp_path / "made"
    (folder / "report").mkdir(parents=True)
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}})
    (folder / "recipe.yaml").write_text(recipe.dump())
    (folder / "report" / "results.json").write_text(dumps(results(recipe=recipe.model_dump(mode="json"))))
    (folder / "ledger.json").write_text('{"steps": {}}')
    return folder


READERS = (
    ("select", "made"),
    ("report", "made"),
    ("gate", "made"),
    ("rejudge", "made", "--judges", "rules"),
    ("label", "made", "--show"),
    ("paper", "made", "--out", "tables"),
)


@pytest.mark.parametrize("kind", ["fifo", "sparse", "wrong types"])
@pytest.mark.parametrize("name", ["ledger.json", "report/results.json", "labels.jsonl"])
def test_a_hostile_file_of_a_run(run: Run, tmp_path: Path, made: Path, name: str, kind: str) -> None:
    CONTENTS[kind](made / name)
    for command in READERS:
        before = listing(tmp_path)
        with limited():
            code, _, err = run(*command)
        assert code in (0, 2, 3), err
        assert err.count("\n") <= 1 or code != 2, err
        assert code != 2 or listing(tmp_path) == before


@pytest.mark.parametrize("name", ["/proc/self/mem", "../made/recipe.yaml", "", ".", "a\0b", "x" * 300, "\ud800"])
def test_a_ledger_that_names_a_file_elsewhere(run: Run, tmp_path: Path, made: Path, name: str) -> None:
    step = {"label": "l", "key": "k", "done": True, "seconds": 1.0, "files": {name: "0"}}
    (made / "ledger.json").write_text(json.dumps({"steps": {"a": step}}))
    for command in READERS[:4]:
        code, _, err = run(*command)
        assert (code, err.count("\n")) in ((2, 1), (0, 0)), err


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_of_a_run_that_is_no_file(run: Run, tmp_path: Path, kind: str, tiny_model_folder: Path) -> None:
    """The lock of a run folder from elsewhere neither blocks nor empties another file."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    {"link": lambda: lock.symlink_to(tmp_path / "mine"), "fifo": lambda: fifo(lock), "folder": lock.mkdir}[kind]()
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"base": str(tiny_model_folder), "tuned": str(tiny_model_folder), "out": "run"})
    )
    with limited():
        check_refused(run, "output.bad_lock", "run", "r.yaml", names=".lock")
    assert (tmp_path / "mine").read_text() == "mine"


VERBS_WITH_NAMES = (
    ("merge", "NAME", "NAME", "--lam", 0.5, "--out", "out"),
    ("inspect", "NAME", "NAME"),
    ("extract-lora", "NAME", "NAME", "--rank", 2, "--out", "out"),
    ("run", "NAME"),
    ("safeguard", "NAME", "NAME", "--out", "out"),
    ("mergekit", "run", "NAME", "--out", "out"),
    ("tune", "NAME", "NAME", "--out", "out"),
    ("generate", "NAME", "NAME", "--out", "out"),
    ("score", "NAME", "NAME"),
    ("prefer", "NAME", "NAME", "NAME", "--judge", "x"),
    ("select", "NAME"),
    ("report", "NAME"),
    ("gate", "NAME"),
    ("label", "NAME", "--show"),
    ("rejudge", "NAME", "--judges", "rules"),
    ("paper", "NAME", "--out", "out"),
    ("verify", "NAME"),
    ("push", "NAME", "me/mine"),
    ("to-gguf", "NAME", "--out", "out"),
    ("compare", "NAME", "NAME", "--prompt", "x"),
    ("data", "NAME"),
)


@pytest.mark.parametrize("name", ["x" * 300, "d/" * 3000, "a\0b", "\ud800", "x" * 300 + ".gguf"], ids=range(5))
def test_names_that_no_file_has(run: Run, tmp_path: Path, name: str) -> None:
    for command in VERBS_WITH_NAMES:
        code, _, err = run(*(name if part == "NAME" else part for part in command))
        assert code == 2, f"{command[0]}: {err}"
        assert err.count("\n") == 1, err
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [5, 30, 200, -1, -1000])
def test_a_truncated_gguf(run: Run, tmp_path: Path, cut: int, tiny_tokenizer: Any, tuned: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    from test_gguf import write_tiny

    file = write_tiny(tmp_path / "whole.gguf", tiny_tokenizer, "Q8_0")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:cut])
    check_refused(run, "model.corrupt", "merge", "cut.gguf", tuned, "--lam", 0.5, "--out", "out", names="cut.gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [fifo, device])
def test_a_gguf_that_is_no_file(run: Run, tmp_path: Path, make: Make, tuned: Path) -> None:
    make(tmp_path / "x.gguf")
    code, _, err = run("merge", "x.gguf", tuned, "--lam", 0.5, "--out", "out")
    assert (code, err.count("\n")) == (2, 1), err


@pytest.mark.parametrize(("harmful", "prompts", "bound"), [(4, 81, 0.05), (42, 425, 0.1)])
def test_a_rate_just_under_the_bound_is_answered_at_once(
    run: Run, tmp_path: Path, made: Path, harmful: int, prompts: int, bound: float
) -> None:
    """How many prompts would do is found soon: this took minutes."""
    import dataclasses

    def at(trial: Any) -> Any:
        value = harmful / prompts if trial.point.lam else 0.0
        asr = dataclasses.replace(trial.scores["asr"], value=value, low=0.0, high=0.2, n=prompts)
        asr = dataclasses.replace(asr, details={"yes": value * prompts, "total": prompts, "miss": 0})
        return dataclasses.replace(trial, scores={**trial.scores, "asr": asr})

    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}}).model_dump(mode="json")
    found = results(recipe=recipe, trials=[at(trial) for trial in trials()])
    (made / "report" / "results.json").write_text(dumps(found))
    with limited():
        code, out, err = run("select", "made", "--bound", bound)
    assert (code, err) == (3, "")
    assert "prompts" in out


@pytest.mark.parametrize("where", ["base", "tuned", "file"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_impossible_out_of_a_recipe(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, where: str, dry: tuple[str, ...]
) -> None:
    for name, source in (("base", tiny_model_folder), ("tuned", tuned)):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "file").touch()
    before = listing(tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"base": "base", "tuned": "tuned", "out": f"{where}/run"}))
    check_refused(run, "output.is_a_file" if where == "file" else "output.in_model", "run", "r.yaml", *dry)
    (tmp_path / "r.yaml").unlink()
    merge = ("merge", "base", "tuned", "--lam", 0.5, "--out", "file/x")
    check_refused(run, "output.parent_is_a_file", *merge)
    check_refused(run, "output.parent_is_a_file", "tune", "base", write_task(tmp_path), "--out", "file/x")
    (tmp_path / "task.jsonl").unlink()
    assert listing(tmp_path) == before
