"""Digests: of what a model is, not of where it lies."""

import hashlib
import json
from pathlib import Path

import pytest

from mooring.errors import ModelError
from mooring.models import file_digests, model_digest, text_digest


def model(folder: Path, weights: bytes = b"w", config: str = '{"a": 1}') -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(config)
    return folder


def test_the_digest_does_not_depend_on_the_path(tmp_path: Path) -> None:
    first = model(tmp_path / "a")
    assert file_digests(first)["model.safetensors"] == hashlib.sha256(b"w").hexdigest()
    assert set(file_digests(first)) == {"model.safetensors", "config.json"}
    same = model(tmp_path / "b", config='{"_name_or_path": "/home/me/x",  "a": 1}')
    (same / "tokenizer.json").touch()
    assert model_digest(first) == model_digest(same)
    assert model_digest(first) != model_digest(model(tmp_path / "c", weights=b"v"))
    assert model_digest(first) != model_digest(model(tmp_path / "d", config='{"a": 2}'))


def test_changed_file_is_hashed_again(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    before = model_digest(folder)
    (folder / "model.safetensors").write_bytes(b"longer")
    assert model_digest(folder) != before


def test_adapter(tmp_path: Path) -> None:
    digests = []
    for name, modules in (("a", ["q", "k"]), ("b", ["k", "q"])):  # PEFT writes a set, in any order
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"w")
        config = {"base_model_name_or_path": f"/tmp/{name}", "target_modules": modules}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        digests.append(model_digest(folder))
    assert digests[0] == digests[1]


def test_nothing_to_hash(tmp_path: Path) -> None:
    for folder, code in {tmp_path: "model.no_weights", tmp_path / "none": "model.not_found"}.items():
        with pytest.raises(ModelError) as caught:
            model_digest(folder)
        assert caught.value.code == code


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", "merges.txt"])
def test_tokenizer_files_have_a_digest_of_their_own(tmp_path: Path, name: str) -> None:
    (tmp_path / "README.md").write_text("a")
    nothing = text_digest(tmp_path)
    (tmp_path / name).write_text("{}")
    some = text_digest(tmp_path)
    (tmp_path / name).write_text("{ }")
    (tmp_path / "README.md").write_text("b")
    assert len({nothing, some, text_digest(tmp_path)}) == 3
