"""Writing: exact bytes at any position, side files chosen, errors explained."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mooring.errors import OutputError
from mooring.models import Writer, copy_side_files, open_checkpoint, side_files

A = torch.arange(12, dtype=torch.float16).view(3, 4)
B = torch.tensor([True, False])


def test_slices_in_any_order(tmp_path: Path) -> None:
    shards = {"model-1.safetensors": [("a", A.dtype, (3, 4))], "model-2.safetensors": [("b", B.dtype, (2,))]}
    with Writer(tmp_path, shards) as writer:
        writer.write("b", 0, B)
        writer.write("a", 5, A.flatten()[5:])
        writer.write("a", 0, A.flatten()[:5])
        with pytest.raises(ValueError, match="do not fit"):
            writer.write("a", 9, A.flatten()[:4])
        with pytest.raises(ValueError, match="do not fit"):
            writer.write("a", 0, A.flatten().float())
    assert torch.equal(load_file(tmp_path / "model-1.safetensors")["a"], A)
    assert torch.equal(load_file(tmp_path / "model-2.safetensors")["b"], B)
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(tmp_path) as model:
        assert set(model.tensors) == {"a", "b"}


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError) as caught:
        Writer(tmp_path, {"model.safetensors": [("a", A.dtype, (3, 4))]})
    assert caught.value.code == "output.disk_full"


def test_side_files(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    kept = ["config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt", "LICENSE", "modeling_x.py"]
    extra = "additional_chat_templates/tools.jinja"
    dropped = [
        *("README.md", ".gitattributes", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"),
        *("adapter_config.json", "training_args.bin", "optimizer.pt", "trainer_state.json", "mooring.json"),
        *("runs/events", "x.gguf"),
    ]
    for name in [*kept, extra, *dropped]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "linked.json").symlink_to(source / "config.json")  # the hub's cache is made of links
    target.mkdir()
    copy_side_files(source, target)
    assert {str(p) for p in side_files(source)} == {*kept, extra, "linked.json"}
    assert (target / extra).read_text() == extra
    assert (target / "linked.json").read_text() == "config.json"
    assert not (target / "linked.json").is_symlink()
