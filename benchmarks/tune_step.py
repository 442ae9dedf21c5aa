"""A LoRA step on a CPU: TRL's own loss beside the one that Mooring uses there, in one run; the ratio last.

    python benchmarks/tune_step.py [MODEL]

MODEL is a folder, a hub id or the bundled model (the default). A step is 8 rows of 100 tokens, 25 of them a response.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTTrainer

from mooring.config import Tune
from mooring.models.resolve import resolve_model
from mooring.quiet import quiet
from mooring.training.trainer import ResponseTrainer, sft_config

STEPS = 6


def seconds(kind: type[Any], attention: str, folder: Path) -> float:
    """Seconds a step of a trainer, the first one left out."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 30_000, (100,), generator=generator).tolist() for _ in range(64)]
    data = Dataset.from_dict({"input_ids": rows, "labels": [[-100] * 75 + row[75:] for row in rows]})
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation=attention),
            args=sft_config(Tune(data=("x",)), Path(work), STEPS, 1, True),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.remove_callback(PrinterCallback)
        step = trainer.training_step

        def timed(*args: Any, **named: Any) -> Any:
            stamps.append(time.perf_counter())
            return step(*args, **named)

        trainer.training_step = timed
        trainer.train()
    return (stamps[-1] - stamps[1]) / (len(stamps) - 2)


def main() -> None:
    """Time both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled:smollm2-135m-instruct")
    folder = resolve_model(parser.parse_args().model)
    warnings.simplefilter("ignore")
    with quiet("transformers", "datasets"):
        theirs = seconds(SFTTrainer, "sdpa", folder)
        ours = seconds(ResponseTrainer, "eager", folder)
    print(f"TRL's loss, fused attention: {theirs:.2f} s per step")
    print(f"Mooring's loss, plain attention: {ours:.2f} s per step")
    print(f"ratio: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
