"""The engine on a tiny random Llama with a real tokenizer."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mooring.chat import encode_example, encode_prompt
from mooring.config import Generate
from mooring.errors import DataError, ModelError
from mooring.inference.decode import apply_penalty, decode, next_tokens, pad_left, uniforms
from mooring.inference.load import load_engine
from mooring.inference.transformers import TransformersEngine
from mooring.records import Completion, Message, Prompt
from mooring.sampling import SamplingParams

SOURCE = Path(__file__).parents[2] / "src" / "mooring"
TEXTS = ["Hi", "What is the capital of Norway?", "Write a poem about the sea. " * 3, "Why?", "user: 12 hours, 12 foxes"]


def prompts(texts: list[str] = TEXTS, reference: str | None = None) -> list[Prompt]:
    return [
        Prompt(id=f"p{i}", messages=(Message("user", text),), reference=reference, origin=f"set.jsonl:{i + 1}")
        for i, text in enumerate(texts)
    ]


def answers(engine: TransformersEngine, asked: list[Prompt], settings: SamplingParams) -> dict[str, Completion]:
    return {c.prompt_id: c for batch in engine.complete(asked, settings) for c in batch}


@pytest.fixture(scope="module")
def engine(tiny_model_folder: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_a_batch_gives_what_single_prompts_give(engine: TransformersEngine, penalty: float) -> None:
    settings = SamplingParams(max_tokens=24, repetition_penalty=penalty)
    together = answers(engine, prompts(), settings)
    alone = {k: v for prompt in prompts() for k, v in answers(engine, [prompt], settings).items()}
    assert together == alone


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_those_of_generate(engine: TransformersEngine, penalty: float) -> None:
    from transformers import GenerationConfig

    for prompt in prompts():
        row = encode_prompt(engine.tokenizer, prompt, engine.system)
        config = GenerationConfig(max_new_tokens=20, do_sample=False, repetition_penalty=penalty, pad_token_id=2)
        want = engine.model.generate(
            torch.tensor([row]), attention_mask=torch.ones(1, len(row)), generation_config=config
        )[0, len(row) :].tolist()
        got = decode(
            engine.model, [row], ["a"], SamplingParams(max_tokens=20, repetition_penalty=penalty), engine.stops, 2
        )[0]
        assert got == want[: len(got)]
        assert len(got) == 20 or got[-1] in engine.stops


def test_finished_rows_leave_the_batch_and_the_others_continue(engine: TransformersEngine) -> None:
    rows = [encode_prompt(engine.tokenizer, p, engine.system) for p in prompts()]
    settings = SamplingParams(max_tokens=16)
    free = decode(engine.model, rows, list("abcde"), settings, frozenset(), 2)
    stop = free[1][5]
    got = decode(engine.model, rows, list("abcde"), settings, frozenset({stop}), 2)
    want = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    assert got == want
    assert len({len(row) for row in got}) > 1


def test_sampling_does_not_depend_on_the_batch(engine: TransformersEngine) -> None:
    settings = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.9, seed=7)
    together = answers(engine, prompts(), settings)
    assert together == answers(engine, prompts()[::-1], settings)
    assert together["p3"] == answers(engine, [prompts()[3]], settings)["p3"]
    other = answers(engine, prompts(), SamplingParams(max_tokens=12, temperature=0.9, top_p=0.9, seed=8))
    assert other != together


def test_a_resumed_run_computes_the_missing_batches_whole(tiny_model_folder: Path) -> None:
    engine = TransformersEngine.load(tiny_model_folder, batch_size=2, device="cpu", dtype="bfloat16")
    settings = SamplingParams(max_tokens=12)
    batches = list(engine.complete(prompts(), settings))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    done = {c.prompt_id for c in batches[0]} | {batches[1][0].prompt_id}
    assert list(engine.complete(prompts(), settings, done=done)) == batches[1:]


def test_a_prompt_over_the_context_is_named_before_anything_is_generated(engine: TransformersEngine) -> None:
    asked = prompts(["Hi", "fox " * 300])
    with pytest.raises(DataError) as caught:
        next(engine.complete(asked, SamplingParams(max_tokens=8)))
    assert caught.value.message.startswith("set.jsonl:2: ")
    assert caught.value.code == "data.context_exceeded"
    with pytest.raises(DataError) as caught:
        next(engine.likelihood([*prompts(["Hi"], "a"), *prompts(["a", "fox " * 300], "a")[1:]]))
    assert caught.value.message.startswith("set.jsonl:2: ")
    assert caught.value.code == "data.context_exceeded"


def test_the_context_is_used_to_the_last_token(engine: TransformersEngine) -> None:
    room = 256 - len(encode_prompt(engine.tokenizer, prompts()[0], engine.system))
    made = answers(engine, prompts()[:1], SamplingParams(max_tokens=room))
    assert made["p0"].tokens <= room
    with pytest.raises(DataError):
        answers(engine, prompts()[:1], SamplingParams(max_tokens=room + 1))


def test_likelihood_is_that_of_a_plain_loop(engine: TransformersEngine) -> None:
    examples = [
        Prompt(id=str(i), messages=(Message("user", text),), reference="Oslo is the capital. " * (i + 1))
        for i, text in enumerate(TEXTS)
    ]
    got = {x.prompt_id: x for batch in engine.likelihood(examples) for x in batch}
    for example in examples:
        row, start = encode_example(engine.tokenizer, example, engine.system)
        assert row[-1] == engine.tokenizer.eos_token_id
        with torch.no_grad():
            logs = engine.model(torch.tensor([row])).logits[0].log_softmax(-1)
        want = -sum(logs[i - 1, row[i]].item() for i in range(start, len(row)))
        assert got[example.id].nll == pytest.approx(want, rel=1e-5)
        assert got[example.id].tokens == len(row) - start


def test_likelihood_without_a_reference_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(DataError) as caught:
        next(engine.likelihood(prompts()))
    assert caught.value.message.startswith("set.jsonl:1: ")
    assert caught.value.code == "data.no_reference"


def test_no_prompts_and_repeated_ids_are_refused(engine: TransformersEngine) -> None:
    with pytest.raises(DataError) as caught:
        next(engine.complete([], SamplingParams()))
    assert caught.value.code == "data.no_prompts"
    with pytest.raises(DataError) as caught:
        next(engine.complete(prompts()[:1] * 2, SamplingParams()))
    assert "'p0'" in caught.value.message
    assert caught.value.code == "data.repeated_id"


def test_the_checkpoints_generation_config_has_no_effect(
    tmp_path: Path, save_tiny_model: Any, engine: TransformersEngine
) -> None:
    folder = save_tiny_model(tmp_path / "m")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 5.0, "top_k": 3, "repetition_penalty": 3.0, "max_length": 3,'
        ' "eos_token_id": [2, 0]}'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = TransformersEngine.load(folder, dtype="float32", device="cpu")
        assert other.stops == {0, 2}
        settings = SamplingParams(max_tokens=8)
        rows = [encode_prompt(engine.tokenizer, p, engine.system) for p in prompts()]
        stops = engine.stops
        assert decode(other.model, rows, TEXTS, settings, stops, 2) == decode(
            engine.model, rows, TEXTS, settings, stops, 2
        )


@pytest.mark.slow
def test_loading_and_generating_print_nothing(tiny_model_folder: Path) -> None:
    code = (
        "from pathlib import Path; from mooring.inference.load import *; from mooring.records import *\n"
        "from mooring.sampling import *\n"
        "from mooring.config import Generate\n"
        f"e = load_engine(Path({str(tiny_model_folder)!r}), Generate(), None)\n"
        "list(e.complete([Prompt(id='a', messages=(Message('user', 'Hi'),))], SamplingParams(max_tokens=3)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_an_adapter_is_opened_on_its_base(tmp_path: Path, tiny_model_folder: Path, engine: TransformersEngine) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(base, config)
    tuned.save_pretrained(tmp_path / "adapter")
    adapted = load_engine(tmp_path / "adapter", Generate(device="cpu"), engine.system)
    plain = TransformersEngine(tuned.merge_and_unload(), engine.tokenizer)
    settings = SamplingParams(max_tokens=8)
    assert answers(adapted, prompts(), settings) == answers(plain, prompts(), settings)  # type: ignore[arg-type]
    assert answers(plain, prompts(), settings) != answers(engine, prompts(), settings)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "model.empty"),
        (lambda f: (f / "config.json").write_text("{}"), "model.no_type"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "model.corrupt"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "model.unloadable"),
        (lambda f: drop_tensor(f / "model.safetensors"), "model.missing_tensor"),
    ],
)
def test_a_broken_folder_is_rejected_in_one_line(tmp_path: Path, save_tiny_model: Any, spoil: Any, code: str) -> None:
    folder = save_tiny_model(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        load_engine(folder, Generate(), None)
    assert caught.value.code == code
    assert ("model.norm.weight" in str(caught.value)) is (code == "model.missing_tensor")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_engine(tmp_path / "nowhere", Generate(), None)
    assert caught.value.code == "model.not_found"


def drop_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def test_padding_is_on_the_left() -> None:
    ids, mask, positions = pad_left([[5, 6, 7], [8]], 0, "cpu")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_the_repetition_penalty_matches_values_computed_by_hand() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert apply_penalty(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]


def test_next_tokens_match_values_computed_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()

    def draw(u: float, top_p: float = 1.0) -> int:
        return int(next_tokens(logits, torch.tensor([u], dtype=torch.float64), 1.0, top_p).item())

    assert [draw(u) for u in (0.0, 0.09, 0.11, 0.29, 0.31, 0.999999)] == [0, 0, 1, 1, 2, 2]
    assert {draw(u / 50, 0.5) for u in range(50)} == {2}  # the likeliest alone holds half
    assert {draw(u / 50, 0.8) for u in range(50)} == {1, 2}
    assert draw(1 - 2**-53, 0.8) == 1
    assert next_tokens(logits, None, 0.0, 1.0).tolist() == [2]


def test_sampled_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(4000, 3)
    uniform = torch.cat([uniforms(SamplingParams(max_tokens=4), f"p{i}") for i in range(1000)])
    counts = torch.bincount(next_tokens(logits, uniform, 1.0, 1.0), minlength=3) / 4000
    assert counts.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.03)
