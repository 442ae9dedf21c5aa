"""Each model judge on a tiny random model of its own architecture: rendered, tokenized, generated, read, counted."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from mooring.chat import encode_prompt
from mooring.inference.transformers import TransformersEngine
from mooring.records import Completion, Prompt
from mooring.sampling import SamplingParams
from mooring.scoring import judges
from mooring.scoring.judges import JUDGES, find
from mooring.scoring.safety import attack_success

GRANITE = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
LLAMA_3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
ARCHITECTURES: dict[str, tuple[str, list[str]]] = {
    "wildguard": ("Mistral", ["<s>"]),
    "llama-guard-3": ("Llama", LLAMA_3),
    "llama-guard-3-1b": ("Llama", LLAMA_3),
    "llama-guard-4": ("Llama4", ["<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>"]),
    "qwen3guard": ("Qwen3", []),
    "qwen3guard-strict": ("Qwen3", []),
    "shieldgemma": ("Gemma2", ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "granite-guardian": ("Granite", GRANITE),
    "granite-guardian-3.2": ("Granite", GRANITE),
    "harmbench": ("Llama", ["<s>"]),
    "strongreject": ("Qwen3", []),
    "llm": ("Qwen3", []),
}
"""Architecture and special tokens; the first is a BOS that the tokenizer puts in front, but for Granite's."""


def build(name: str, base: Any) -> tuple[Any, Any]:
    """A tiny random model of a judge's architecture, and a tokenizer with its special tokens."""
    kind, special = ARCHITECTURES[name]
    tokenizer = copy.deepcopy(base)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if special and kind != "Granite":
        tokenizer.bos_token = special[0]
        bos = (special[0], tokenizer.convert_tokens_to_ids(special[0]))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
        "head_dim": 8,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = getattr(transformers, "Llama4TextConfig" if kind == "Llama4" else f"{kind}Config")
    known = settings if kind == "Llama4" else {k: v for k, v in settings.items() if k not in LLAMA_4_ALONE}
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config(**known)), tokenizer


LLAMA_4_ALONE = {"intermediate_size_mlp", "num_local_experts"}


def test_every_judge_that_needs_a_model_is_tried() -> None:
    assert set(ARCHITECTURES) == {name for name, judge in JUDGES.items() if judge.needs_model}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_real_path_on_random_weights(
    name: str, tiny_tokenizer: Any, prompts: list[Prompt], completions: list[Completion]
) -> None:
    judge = find(name)
    model, tokenizer = build(name, tiny_tokenizer)
    engine = TransformersEngine(model, tokenizer, system=None, batch_size=4)
    asked = judges.questions(judge, prompts, completions)
    settings = SamplingParams(max_tokens=min(judge.max_tokens, 6))
    answers = [completion for batch in engine.complete(asked, settings) for completion in batch]
    made = judges.verdicts(judge, prompts, completions, answers, judges.label(judge, "tiny/random"))
    said = {a.prompt_id: a.text for a in answers}
    per = len(asked) // len(completions)
    for number, verdict in enumerate(made):
        assert (verdict.harmful, verdict.refused) == (None, None)
        assert verdict.why
        assert verdict.raw == "\n---\n".join(said[q.id] for q in asked[number * per : (number + 1) * per])
    # Random weights seldom end their turn: what they said so far is read as if they had.
    ended = [dataclasses.replace(answer, finish="stop") for answer in answers]
    read = judges.verdicts(judge, prompts, completions, ended, "j")
    assert [v.harmful for v in read] == [None] * 3
    assert not any(v.why.startswith("cut off") for v in read)
    assert all(v.why for v in read)
    assert judges.misses(made) == judges.misses(read) == 1 > judges.MISS_WARNING
    score = attack_success(made)
    assert (score.value, score.details, score.method) == (
        None,
        {"yes": 0, "total": 3, "miss": 3},
        f"{name} (tiny/random)",
    )


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("strongreject", "llm")])
def test_the_whole_text_becomes_tokens_with_one_bos(
    name: str, tiny_tokenizer: Any, prompts: list[Prompt], completions: list[Completion]
) -> None:
    kind, special = ARCHITECTURES[name]
    _, tokenizer = build(name, tiny_tokenizer)
    has_bos = bool(special) and kind != "Granite"
    for question in judges.questions(find(name), prompts, completions):
        row = encode_prompt(tokenizer, question, None)
        assert tokenizer.decode(row) == (special[0] if has_bos else "") + str(question.rendered)
        for token in special[1:] if has_bos else special:
            assert row.count(tokenizer.convert_tokens_to_ids(token)) == str(question.rendered).count(token) > 0
        if has_bos:
            assert row.count(tokenizer.bos_token_id) == 1
