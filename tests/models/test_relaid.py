"""A checkpoint in another layout is read right whatever the slices, the tiles and the threads."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mooring.models import Checkpoint, TensorInfo, open_checkpoint
from mooring.models import relaid as module
from mooring.models.relaid import RelaidCheckpoint
from mooring.models.strided import Segment

SOURCE = torch.arange(5 * 6 * 8, dtype=torch.int32).view(5, 6, 8)
LAYOUTS = {
    "as it is": (SOURCE, [Segment("w", 0, 0, ((240, 1, 1),))]),
    "transposed": (SOURCE.mT, [Segment("w", 0, 0, ((5, 48, 48), (8, 6, 1), (6, 1, 8)))]),
    "one expert": (SOURCE[2].T, [Segment("w", 0, 96, ((8, 6, 1), (6, 1, 8)))]),
    "interleaved": (
        SOURCE.view(5, 2, 3, 8).transpose(1, 2).reshape(5, 6, 8),
        [Segment("w", 8 * k, 24 * k, ((5, 48, 48), (3, 16, 8), (8, 1, 1))) for k in range(2)],
    ),
    "every other": (SOURCE[:, :, ::2], [Segment("w", 0, 0, ((120, 1, 2),))]),
    "two tensors": (
        torch.cat([SOURCE[0], SOURCE[3]]),
        [Segment("w", 0, 0, ((48, 1, 1),)), Segment("w", 48, 144, ((48, 1, 1),))],
    ),
    "far apart": (SOURCE.view(5, 48)[:, ::24], [Segment("w", 0, 0, ((5, 2, 48), (2, 1, 24)))]),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": SOURCE}, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("tile", "run"), [(2**22, 2**11), (50, 2**11), (7, 2**11), (50, 2)])
def test_any_slice(layout: str, tile: int, run: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    monkeypatch.setattr(module, "_LONG_RUN", run)
    expected, segments = LAYOUTS[layout]
    shape = tuple(expected.shape)
    info = TensorInfo("v", torch.int32, shape, checkpoint.folder / "model.safetensors", 0, expected.numel() * 4)
    flat = expected.reshape(-1)
    with RelaidCheckpoint(checkpoint, [info], {"v": segments}) as relaid:
        assert torch.equal(relaid.tensor("v"), expected)
        pieces = [(start, min(start + size, len(flat))) for size in (1, 9, 64) for start in range(0, len(flat), size)]
        buffer = torch.empty(64 * 8, dtype=torch.uint8)
        for start, stop in pieces:
            assert torch.equal(relaid.read("v", start, stop, out=buffer), flat[start:stop])
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda piece: torch.equal(relaid.read("v", *piece), flat[slice(*piece)]), pieces))
        with pytest.raises(ValueError, match="no elements"):
            relaid.read("v", 0, len(flat) + 1)
