"""Write SmolLM2-135M-Instruct in float32, and copies of it after real steps of full fine-tuning, for `parity.py`.

    python benchmarks/tuned_models.py FOLDER

FOLDER/base; FOLDER/tuned and FOLDER/other, each five steps of Adam at 1e-4 on its own draw of the bundled tool calls;
FOLDER/far, the same at 3e-3, which ruins the model but makes large angles. 2.2 GB, about two minutes on two cores.
"""

import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from mooring.chat import encode_example
from mooring.data import load_examples
from mooring.models.resolve import resolve_model

BASE = "bundled:smollm2-135m-instruct"
COPIES = {"tuned": (0, 1e-4), "other": (1, 1e-4), "far": (2, 3e-3)}
"""Seed of the draw and learning rate of each copy."""
STEPS, BATCH = 5, 4


def tune(model: Any, tokenizer: Any, seed: int, rate: float) -> float:
    """Take a few steps on every weight; returns the last loss."""
    examples = random.Random(seed).sample(load_examples("bundled:tools"), STEPS * BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(STEPS):
        optimizer.zero_grad()
        last = 0.0
        for example in examples[step * BATCH : (step + 1) * BATCH]:
            ids, start = encode_example(tokenizer, example, None)
            labels = [-100] * start + ids[start:]
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss / BATCH
            loss.backward()
            last += loss.item()
        optimizer.step()
    return last


def main() -> None:
    """Write them all."""
    folder = Path(sys.argv[1])
    disable_progress_bar()
    source = resolve_model(BASE)
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name, (seed, rate) in {"base": (0, 0.0), **COPIES}.items():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        loss = tune(model, tokenizer, seed, rate) if rate else float("nan")
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        print(f"{name}: loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
