"""Answers that begin with words that the model did not write."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mooring.chat import encode_prompt, prefill_text, prefill_tokens
from mooring.errors import ModelError
from mooring.inference.dialect import Dialect, request_body
from mooring.inference.encode import encode_prompts
from mooring.inference.transformers import TransformersEngine
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

PLAIN = Prompt(id="p", messages=(Message("user", "What is the capital of Norway?"),))
BEGUN = dataclasses.replace(PLAIN, prefill="Sure, here is the whole answer:", prefill_tokens=4)


@pytest.fixture(scope="module")
def engine(tiny_model_folder: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")


def answer(engine: TransformersEngine, prompt: Prompt, tokens: int, drafts: dict[str, str] | None = None) -> Any:
    (batch,) = engine.complete([prompt], SamplingParams(max_tokens=tokens), drafts=drafts)
    return batch[0]


def test_the_model_continues_the_first_tokens_of_the_prefill(engine: TransformersEngine) -> None:
    tokenizer = engine.tokenizer
    whole = tokenizer(BEGUN.prefill, add_special_tokens=False)["input_ids"]
    row = encode_prompt(tokenizer, BEGUN, None)
    assert row == encode_prompt(tokenizer, PLAIN, None) + whole[:4]
    made = answer(engine, BEGUN, 12)
    assert made.prefill == tokenizer.decode(whole[:4])
    assert made.answer == made.prefill + made.text
    assert made.prefill == prefill_text(tokenizer, BEGUN)
    assert answer(engine, PLAIN, 12).prefill == ""


def test_an_answer_that_begins_with_the_models_own_words_is_the_models_own(engine: TransformersEngine) -> None:
    own = answer(engine, PLAIN, 16)
    prefilled = dataclasses.replace(PLAIN, prefill=own.text, prefill_tokens=6)
    ids = engine.tokenizer(own.text, add_special_tokens=False)["input_ids"]
    continued = answer(engine, prefilled, 10)
    if engine.tokenizer.decode(ids) == own.text and len(ids) == 16:  # the text has one tokenization
        assert continued.answer == own.text
    assert continued.answer.startswith(engine.tokenizer.decode(ids[:6]))


def test_drafts_change_no_prefilled_answer(engine: TransformersEngine) -> None:
    alone = answer(engine, BEGUN, 16)
    drafted = answer(engine, BEGUN, 16, {"p": alone.text})
    assert (drafted.text, drafted.prefill) == (alone.text, alone.prefill)


def test_prefilled_tokens_count_towards_the_context(engine: TransformersEngine) -> None:
    (row,) = encode_prompts(engine.tokenizer, [BEGUN], None, 8, None)
    assert row[-4:] == prefill_tokens(engine.tokenizer, BEGUN)
    with pytest.raises(Exception, match="do not fit"):
        encode_prompts(engine.tokenizer, [BEGUN], None, 8, len(row) + 7)


def test_an_answer_cannot_be_prefilled_where_the_template_opens_thoughts(engine: TransformersEngine) -> None:
    opened = dataclasses.replace(BEGUN, rendered="user: Hi\nassistant: <think>\n")
    with pytest.raises(ModelError) as caught:
        encode_prompt(engine.tokenizer, opened, None)
    assert caught.value.code == "model.prefill_in_thoughts"


def test_the_fields_of_servers_that_continue_an_answer() -> None:
    prefilled = dataclasses.replace(PLAIN, prefill="Sure, here")
    path, body = request_body(prefilled, 0, SamplingParams(), model="m", system=None, dialect=Dialect())
    assert path == "chat/completions"
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure, here"}
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
    _, plain = request_body(PLAIN, 0, SamplingParams(), model="m", system=None, dialect=Dialect())
    assert "continue_final_message" not in plain
