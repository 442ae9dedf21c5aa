"""The loss on a CPU, against its definition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from mooring.config import Tune
from mooring.training.trainer import ResponseTrainer, sft_config


@pytest.mark.parametrize("items", [None, 7])
def test_the_loss_is_the_mean_over_response_tokens(
    tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path, items: int | None
) -> None:
    rows = [[5, 9, 14, 20, 33, 2], [7, 8, 40, 2]]
    prompts = [3, 1]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    trainer = ResponseTrainer(
        model=model,
        args=sft_config(Tune(data=("x",)), tmp_path, 1, 1, True),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        processing_class=tiny_tokenizer,
    )
    width = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([row + [2] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor(
            [
                [-100] * start + row[start:] + [-100] * (width - len(row))
                for row, start in zip(rows, prompts, strict=True)
            ]
        ),
    }
    with torch.no_grad():
        expected = 0.0
        for row, start in zip(rows, prompts, strict=True):
            logs = torch.log_softmax(model(torch.tensor([row])).logits[0], -1)
            expected -= sum(float(logs[i - 1, row[i]]) for i in range(start, len(row)))
        count = sum(len(row) - start for row, start in zip(rows, prompts, strict=True))
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
    assert float(loss) == pytest.approx(expected / (items or count), rel=1e-5)
