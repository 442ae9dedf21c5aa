"""What is kept of a training besides its end: an earlier step, the moving average; and the KL that may be added."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mooring.config import Tune
from mooring.events import Event
from mooring.records import Message, Prompt
from mooring.training.kept import KeptAdapter
from mooring.training.lora import CURVE, encode, tune

WEIGHTS = "adapter_model.safetensors"


def prompts(text: str, count: int) -> list[Prompt]:
    asked = [(Message("user", f"{text} {i}?"),) for i in range(count)]
    return [Prompt(id=str(i), messages=each, reference=f"It is {text} {i}.") for i, each in enumerate(asked)]


def settings(**changes: Any) -> Tune:
    values = {"data": ("x",), "learning_rate": 0.02, "max_steps": 6, "per_device_train_batch_size": 4, "r": 4}
    return Tune(**values | {"val_set_size": 0.0, "save_steps": 2} | changes)  # type: ignore[arg-type]


def test_the_average_begins_with_the_first_step_and_weighs_the_last_one_least_with_a_large_decay() -> None:
    model, values = torch.nn.Linear(2, 1, bias=False), (1.0, 3.0, -2.0, 100.0)
    kept, taken = KeptAdapter(3, 0.9), KeptAdapter(2)
    for step, value in enumerate(values, 1):
        torch.nn.init.constant_(model.weight, value)
        kept.update(step, model)
        taken.update(step, model)
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 3.0) + 0.1 * -2.0
    for adapter, wanted in ((kept, expected), (taken, 3.0)):
        with adapter.weights_of(model):
            assert model.weight.tolist() == [pytest.approx([wanted, wanted])]
        assert model.weight.tolist() == [[100.0, 100.0]]


class StopError(Exception):
    """Takes the place of a kill."""


@pytest.mark.slow
def test_by_products_are_what_tuning_by_itself_gives_after_an_interruption_too(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    data, options = prompts("number", 12), {"system": None, "seed": 7}
    early, average = settings(early_stop=0.5), settings(ema=0.5)
    alone = {
        name: tune(section, tiny_model_folder, data, tmp_path / name, **options)  # type: ignore[arg-type]
        for name, section in (("whole", settings()), ("early", early), ("average", average))
    }

    def stop(event: Event) -> None:
        if event.done == 5:
            raise StopError

    out, also = tmp_path / "all", {tmp_path / "all-early": early, tmp_path / "all-average": average}
    with pytest.raises(StopError):
        tune(settings(), tiny_model_folder, data, out, also=also, on_event=stop, **options)  # type: ignore[arg-type]
    assert not any(folder.exists() for folder in (out, *also))
    steps: list[int] = []
    tune(
        settings(),
        tiny_model_folder,
        data,
        out,
        also=also,
        on_event=lambda event: steps.append(event.done),
        **options,  # type: ignore[arg-type]
    )
    assert steps == [5, 6]
    for name, folder in zip(alone, (out, *also), strict=True):
        assert (folder / WEIGHTS).read_bytes() == (alone[name] / WEIGHTS).read_bytes(), name
    assert len({(folder / WEIGHTS).read_bytes() for folder in alone.values()}) == 3
    lengths = [len(json.loads((folder / CURVE).read_text())) for folder in (out, *also)]
    assert lengths == [6, 3, 6]
    assert not list(tmp_path.glob(".work-*"))


def moved(base: Path, adapter: Path, tokenizer: Any, ordinary: list[Prompt]) -> float:
    """KL(base ‖ tuned) on ordinary answers by the definition, the mean over their tokens."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    total, count = 0.0, 0
    for row in encode(tokenizer, ordinary, settings(), None):
        start = row["labels"].count(-100)
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            tuned = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            with model.disable_adapter():
                before = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        total += float((before.exp() * (before - tuned)).sum())
        count += len(row["input_ids"]) - start
    return total / count


@pytest.mark.slow
def test_kl_keeps_the_model_near_the_base_on_ordinary_answers(
    tiny_model_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    data, ordinary = prompts("number", 8), prompts("thing", 4)
    found = {}
    for weight in (0.0, 5.0):
        section = settings(kl=weight)
        out = tune(section, tiny_model_folder, data, tmp_path / f"{weight}", system=None, seed=1, ordinary=ordinary)
        losses = [entry["loss"] for entry in json.loads((out / CURVE).read_text())]
        found[weight] = moved(tiny_model_folder, out, tiny_tokenizer, ordinary), losses
    (far, plain), (near, added) = found.values()
    assert near < 0.5 * far
    assert added[0] == plain[0]  # before the first step the adapter changes nothing
    unused = tune(settings(), tiny_model_folder, data, tmp_path / "other", system=None, seed=1, ordinary=ordinary)
    same = [load_file(folder / WEIGHTS) for folder in (unused, tmp_path / "0.0")]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
