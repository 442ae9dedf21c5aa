"""Tuning a tiny model: which tokens are trained on, and that an interruption changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.chat import DEFAULT_SYSTEM
from mooring.config import Tune
from mooring.errors import DataError, ModelError, OutputError
from mooring.events import Event
from mooring.records import Message, Prompt
from mooring.training.lora import CURVE, encode, last_complete_checkpoint, split_examples, tune


def examples(count: int) -> list[Prompt]:
    """Questions with answers."""
    return [
        Prompt(id=str(i), messages=(Message("user", f"What is {i}?"),), reference=f"It is the number {i}.")
        for i in range(count)
    ]


def settings(**changes: Any) -> Tune:
    """Settings that change a tiny model a lot in few steps."""
    values = {
        "data": ("x",),
        "learning_rate": 0.02,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "r": 4,
    }
    return Tune(**values | changes)  # type: ignore[arg-type]


@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 5))
def test_the_split_covers_every_example_once_and_leaves_some_to_train_on(count: int, share: float, seed: int) -> None:
    kept, held = split_examples(count, share, seed)
    assert sorted(kept + held) == list(range(count))
    assert kept
    assert len(held) <= round(count * share)
    assert split_examples(count, share, seed) == (kept, held)


def test_the_loss_is_on_the_response_only(tiny_tokenizer: Any) -> None:
    [row] = encode(tiny_tokenizer, examples(1), settings(), DEFAULT_SYSTEM)
    learned = [token for token in row["labels"] if token != -100]
    assert tiny_tokenizer.decode(learned) == "It is the number 0.<|im_end|>"
    assert row["labels"] == [-100] * (len(row["input_ids"]) - len(learned)) + learned
    text = tiny_tokenizer.decode(row["input_ids"])
    assert text.startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>")
    assert text.endswith("<|im_start|>assistant\nIt is the number 0.<|im_end|>")


def test_an_example_whose_whole_response_is_truncated_is_left_out(tiny_tokenizer: Any) -> None:
    full = encode(tiny_tokenizer, examples(1), settings(), None)[0]
    prompt = full["labels"].count(-100)
    assert (
        encode(tiny_tokenizer, examples(1), settings(max_length=prompt + 2), None)[0]["labels"][prompt:]
        == full["labels"][prompt:][:2]
    )
    with pytest.raises(DataError) as caught:
        encode(tiny_tokenizer, examples(1), settings(max_length=prompt), None)
    assert caught.value.code == "data.no_response_within_length"
    assert "`max_length`" in str(caught.value)


def test_max_response_length_trains_on_the_beginning_of_a_response_only(tiny_tokenizer: Any) -> None:
    full = encode(tiny_tokenizer, examples(1), settings(), None)[0]
    prompt = full["labels"].count(-100)
    short = encode(tiny_tokenizer, examples(1), settings(max_response_length=3), None)[0]
    assert short == {key: values[: prompt + 3] for key, values in full.items()}


def test_an_example_without_a_response_is_named(tiny_tokenizer: Any) -> None:
    bare = Prompt(id="a", messages=(Message("user", "hello"),), origin="data.jsonl:7")
    with pytest.raises(DataError) as caught:
        encode(tiny_tokenizer, [bare], settings(), None)
    assert caught.value.code == "data.no_reference"
    assert str(caught.value).startswith("data.jsonl:7: ")


def test_the_loss_falls_and_every_step_is_an_event(tiny_model_folder: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    out = tune(
        settings(max_steps=20, val_set_size=0.2),
        tiny_model_folder,
        examples(20),
        tmp_path / "adapter",
        system=None,
        seed=1,
        on_event=events.append,
    )
    curve = json.loads((out / CURVE).read_text())
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    assert [(at.step, at.kind, at.unit, at.done, at.total) for at in events] == [
        ("tune", "progress", "steps", step, 20) for step in range(1, 21)
    ]
    assert [at.metrics["loss"] for at in events] == losses
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert any("eval_loss" in entry for entry in curve)
    assert not (tmp_path / ".work-adapter").exists()


def test_the_adapter_is_plain_peft_and_names_its_base(tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    out = tune(settings(), tiny_model_folder, examples(8), tmp_path / "adapter", system=None, seed=1)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 16)
    assert Path(config["base_model_name_or_path"]) == tiny_model_folder.absolute()
    assert sorted({name.rpartition(".")[2] for name in config["target_modules"]}) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    AutoPeftModelForCausalLM.from_pretrained(out)
    named = tune(
        settings(max_steps=1),
        tiny_model_folder,
        examples(8),
        tmp_path / "named",
        system=None,
        seed=1,
        base_name="owner/model",
    )
    assert json.loads((named / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/model"


class StopError(Exception):
    """Takes the place of a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 3, 5])
def test_an_interrupted_run_resumes_to_the_same_bits(tiny_model_folder: Path, tmp_path: Path, moment: int) -> None:
    data, options = examples(20), {"system": None, "seed": 7}
    section = settings(lora_dropout=0.1, val_set_size=0.2)
    whole = tune(section, tiny_model_folder, data, tmp_path / "whole", **options)  # type: ignore[arg-type]
    stopped: list[int] = []

    def stop(event: Event) -> None:
        stopped.append(event.done)
        if event.done == moment:
            raise StopError

    with pytest.raises(StopError):
        tune(section, tiny_model_folder, data, tmp_path / "again", on_event=stop, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "again").exists()
    resumed: list[int] = []
    again = tune(
        section,
        tiny_model_folder,
        data,
        tmp_path / "again",
        on_event=lambda event: resumed.append(event.done),
        **options,  # type: ignore[arg-type]
    )
    assert resumed[0] == moment // 2 * 2 + 1 if moment > 1 else resumed[0] == 1
    assert json.loads((again / CURVE).read_text()) == json.loads((whole / CURVE).read_text())
    assert (again / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_checkpoint_step_keeps_the_adapter_of_the_longer_schedule(tiny_model_folder: Path, tmp_path: Path) -> None:
    data, options = examples(20), {"system": None, "seed": 7}
    curves = {}
    for name, changes in {"whole": {}, "taken": {"checkpoint_step": 4}, "short": {"max_steps": 4}}.items():
        out = tune(settings(**changes), tiny_model_folder, data, tmp_path / name, **options)  # type: ignore[arg-type]
        curves[name] = [entry["loss"] for entry in json.loads((out / CURVE).read_text()) if "loss" in entry]
    assert curves["taken"] == curves["whole"][:4]
    assert curves["taken"] != curves["short"]
    steps: list[int] = []

    def stop(event: Event) -> None:
        assert event.total == 4
        steps.append(event.done)
        if steps == [1, 2, 3]:
            raise StopError

    section, out = settings(checkpoint_step=4), tmp_path / "again"
    with pytest.raises(StopError):
        tune(section, tiny_model_folder, data, out, on_event=stop, **options)  # type: ignore[arg-type]
    tune(section, tiny_model_folder, data, out, on_event=stop, **options)  # type: ignore[arg-type]
    assert steps == [1, 2, 3, 3, 4]
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "taken" / weights).read_bytes()


def test_an_interrupted_run_with_other_settings_starts_over(tiny_model_folder: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.done == 5:
            raise StopError

    data, out = examples(20), tmp_path / "adapter"
    with pytest.raises(StopError):
        tune(settings(), tiny_model_folder, data, out, system=None, seed=1, on_event=stop)
    steps: list[int] = []
    tune(
        settings(learning_rate=0.01),
        tiny_model_folder,
        data,
        out,
        system=None,
        seed=1,
        on_event=lambda event: steps.append(event.done),
    )
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_base_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(ModelError) as caught:
        tune(settings(), tmp_path / "base", examples(4), tmp_path / "adapter", system=None, seed=1)
    assert str(tmp_path / "base") in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_partial_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, complete in ((2, True), (10, True), (12, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "complete").touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-12").exists()


def test_an_output_that_is_not_empty_is_refused_before_any_work(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine").touch()
    with pytest.raises(OutputError) as caught:
        tune(settings(), tiny_model_folder, examples(4), tmp_path / "adapter", system=None, seed=1)
    assert str(tmp_path / "adapter") in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
