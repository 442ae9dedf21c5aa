"""Merging a pair of FP8 models, which it makes itself, beside `cat`: time and peak memory.

    python benchmarks/quantized_merge.py [--layers 30] [--repeat 3] [--keep] [--work FOLDER]

The default is 2.09 billion parameters: matrices in FP8 with a scale per block of 128 × 128, as DeepSeek-V3 and
Qwen3-FP8 store them, and a bfloat16 embedding. Needs 9 GiB of disk (7 with --keep) and 8 GiB of free memory, so that
all is read from the page cache. `cat` reads both inputs and writes as many bytes as the merge writes. Each merge is run
right after its `cat`; ratios are medians over the turns. What was asked for comes last. `--keep` measures
`--keep-quantization`.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from made_models import SHARDS, config, shapes
from safetensors.torch import save_file
from timing import Run, run, run_inside

HERE = Path(__file__).parent
BLOCK = 128
SETTLE = 2
"""Seconds between one run's removal and the next run."""
MEMORY, RATIO = 600, 3.0
"""MiB, and times of `cat`: what was asked for."""


def tensors_of(name: str, shape: tuple[int, ...], index: int, tuned: bool) -> dict[str, torch.Tensor]:
    """What is stored for a tensor: a projection's codes and scales, or bfloat16 values. Tuning changes some codes."""
    random = np.random.default_rng(index)
    if not name.endswith("_proj.weight"):
        values = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)) * 0.02
        return {name: values.to(torch.bfloat16)}
    codes = random.integers(0, 256, shape, dtype=np.uint8) & 0xF7  # no NaN
    if tuned:
        codes ^= np.random.default_rng(1000 + index).integers(0, 2, shape, dtype=np.uint8)
    scales = random.random((-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)), dtype=np.float32) * 1e-4 + 1e-4
    stored = torch.from_numpy(codes).view(torch.float8_e4m3fn)
    return {name: stored, f"{name}_scale_inv": torch.from_numpy(scales)}


def write(folder: Path, hidden: int, layers: int, vocab: int, tuned: bool) -> None:
    """Write a model of about equal shards, one in memory at a time."""
    folder.mkdir(parents=True)
    wide = 4 * hidden
    every = list(shapes(hidden, layers, vocab, wide))
    total = sum(torch.Size(shape).numel() for _, shape in every)
    groups: list[list[int]] = [[] for _ in range(SHARDS)]
    seen = 0
    for index, (_, shape) in enumerate(every):
        groups[min(SHARDS - 1, seen * SHARDS // total)].append(index)
        seen += torch.Size(shape).numel()
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        stored: dict[str, torch.Tensor] = {}
        for index in group:
            stored |= tensors_of(*every[index], index, tuned)
        save_file(stored, folder / file, {"format": "pt"})
        places |= dict.fromkeys(stored, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    fields = config(hidden, layers, vocab, wide) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(fields, indent=2))


def cat(models: Path, out: Path, copies: int) -> Run:
    """Read both inputs, and write the base so many times."""
    out.mkdir()
    base, tuned = (f"'{models / name}'/*.safetensors" for name in ("base", "tuned"))
    first = f"cat {' '.join([base] * copies)} > '{out}/one'"
    return run(["sh", "-ec", f"{first}; cat {tuned} > /dev/null"])[0]


def main() -> None:
    """Make the pair, measure, and print what was reached last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="write FP8 again")
    parser.add_argument("--work", type=Path, default=None, help="where to make the models; a temporary folder without")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        models, out = Path(work), Path(work) / "out"
        for name in ("base", "tuned"):
            write(models / name, args.hidden, args.layers, args.vocab, name == "tuned")
        count = sum(
            torch.Size(shape).numel() for _, shape in shapes(args.hidden, args.layers, args.vocab, 4 * args.hidden)
        )
        print(f"{count / 1e9:.2f} billion parameters", flush=True)
        job = {"base": str(models / "base"), "tuned": [str(models / "tuned")], "out": str(out), "method": "linear"}
        job |= {"lam": 0.6, "keep_quantization": args.keep}
        copies = 1 if args.keep else 2
        ratios, peak = [], 0.0
        for turn in range(args.repeat):
            for name, start in (
                ("cat", lambda: cat(models, out, copies)),
                ("merge", lambda: run_inside(HERE / "one_merge.py", job)),
            ):
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                time.sleep(SETTLE)
                last = start()
                print(f"{turn + 1}/{args.repeat} {name}: {last.seconds:.2f} s, {last.peak:.0f} MiB", flush=True)
                if name == "cat":
                    limit = last.seconds
            ratios.append(last.seconds / limit)
            peak = max(peak, last.peak)
        ratio = statistics.median(ratios)
        print(f"peak memory: {peak:.0f} MiB (asked for: at most {MEMORY})")
        print(f"time: {ratio:.2f} × cat (asked for: at most {RATIO:g})")


if __name__ == "__main__":
    main()
