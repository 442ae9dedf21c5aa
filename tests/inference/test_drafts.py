"""Answers with the help of drafts are the answers without, token by token."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mooring.chat import encode_prompt
from mooring.events import Event
from mooring.inference import decode as decoding
from mooring.inference import drafts as drafting
from mooring.inference import transformers as transformers_engine
from mooring.inference.decode import apply_penalty, common_prefix, decode, prepare
from mooring.inference.drafts import decode_drafted, follow
from mooring.inference.engine import accepted_share
from mooring.inference.store import complete_to_file
from mooring.inference.transformers import TransformersEngine
from mooring.records import Message, Prompt
from mooring.sampling import SamplingParams

TEXTS = ["Hi", "What is the capital of Norway?", "Write a poem about the sea. " * 3, "Why?", "user: 12 hours, 12 foxes"]
LIMIT = 20


@pytest.fixture(scope="module")
def engine(tiny_model_folder: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32", batch_size=2)


@pytest.fixture(scope="module")
def rows(engine: TransformersEngine) -> list[list[int]]:
    return [
        encode_prompt(engine.tokenizer, Prompt(id="", messages=(Message("user", t),)), engine.system) for t in TEXTS
    ]


def plainly(
    engine: TransformersEngine, rows: list[list[int]], settings: SamplingParams, stops: Any = ()
) -> list[list[int]]:
    """One row at a time, without drafts."""
    return [decode(engine.model, [row], ["a"], settings, stops, engine.pad)[0] for row in rows]


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with together."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_tokens_are_the_same_whatever_the_draft(
    engine: TransformersEngine,
    rows: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    penalty: float,
    batch_size: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(drafting, "CHUNK", chunk)
    settings = SamplingParams(max_tokens=LIMIT, repetition_penalty=penalty)
    want = plainly(engine, rows, settings)
    stop = want[1][9]
    spoilt = [*want[2][:4], want[2][4] + 1, *want[2][5:]]
    drafts = [want[0], [], spoilt, want[3] * 3, [stop, *want[4]]]
    for stops in (frozenset[int](), frozenset({stop})):
        expected = [row[: row.index(stop) + 1] if {stop} & stops & {*row} else row for row in want]
        got = decode_drafted(engine.model, rows, drafts, settings, stops, engine.pad, batch_size)
        assert [answer.tokens for answer in got] == expected
        for answer, draft, tokens in zip(got, drafts, expected, strict=True):
            fed = draft[: draft.index(stop)] if {stop} & stops & {*draft} else draft
            assert answer.accepted == common(fed[: LIMIT - 1], tokens)


@given(st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_any_draft_and_any_stop(tiny_model_folder: Path, data: st.DataObject) -> None:
    engine = _engine(tiny_model_folder)
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5))
    asked = [
        encode_prompt(engine.tokenizer, Prompt(id="", messages=(Message("user", t),)), engine.system) for t in texts
    ]
    limit = data.draw(st.integers(1, 8))
    settings = SamplingParams(max_tokens=limit, repetition_penalty=data.draw(st.sampled_from([1.0, 1.2])))
    free = plainly(engine, asked, settings)
    stops = frozenset(data.draw(st.sets(st.sampled_from(sorted({t for row in free for t in row})), max_size=2)))
    drafts = []
    for row in free:
        draft = row[: data.draw(st.integers(0, limit))] + data.draw(st.lists(st.integers(0, 99), max_size=3))
        drafts.append(draft)
    want = plainly(engine, asked, settings, stops)
    got = decode_drafted(engine.model, asked, drafts, settings, stops, engine.pad, data.draw(st.integers(1, 6)))
    assert [answer.tokens for answer in got] == want


_opened: dict[Path, TransformersEngine] = {}


def _engine(folder: Path) -> TransformersEngine:
    if folder not in _opened:
        _opened[folder] = TransformersEngine.load(folder, device="cpu", dtype="float32")
    return _opened[folder]


def test_whole_drafts_take_one_pass(
    engine: TransformersEngine, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "CHUNK", LIMIT)
    settings = SamplingParams(max_tokens=LIMIT)
    want = plainly(engine, rows, settings)
    calls: list[torch.Size] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    try:
        got = decode_drafted(engine.model, rows, want, settings, (), engine.pad, len(rows))
    finally:
        hook.remove()
    assert [answer.tokens for answer in got] == want
    assert len(calls) == 1
    assert [answer.accepted for answer in got] == [LIMIT - 1] * len(rows)


def test_rows_that_deviate_from_their_drafts_continue_together(
    engine: TransformersEngine, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "CHUNK", LIMIT)
    settings = SamplingParams(max_tokens=LIMIT)
    drafts = plainly(engine, rows, settings)
    drafts[0] = drafts[3] = []  # in the first and in the second batch of two
    calls: list[int] = []
    hook = engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        decode_drafted(engine.model, rows, drafts, settings, (), engine.pad, 2)
    finally:
        hook.remove()
    checked, after = calls[: -(LIMIT - 1)], calls[-(LIMIT - 1) :]
    assert set(after) == {2}  # both of them, to the end
    assert checked == [2, 2, 1]


def test_follow_matches_values_computed_by_hand() -> None:
    """Two rows, the second shorter: after `7` the likeliest is 5, then 6, then 5 again; a penalty turns the last."""
    logits = torch.full((2, 3, 8), -1.0)
    logits[0, 0, 5], logits[0, 1, 6], logits[0, 2, 5], logits[0, 2, 4] = 3.0, 3.0, 3.0, 2.0
    logits[1, 1, 6], logits[1, 2, 0] = 3.0, 3.0
    assert follow(logits, [[5, 6], [5]], None, 1.0) == ([2, 0], [5, 6])
    seen = torch.zeros(2, 8, dtype=torch.bool)
    assert follow(logits, [[5, 6], [5]], seen, 2.0) == ([2, 0], [4, 6])
    assert seen.nonzero().tolist() == [[0, 4], [0, 5], [0, 6], [1, 6]]
    assert apply_penalty(logits[:1, 2], seen[:1], 2.0)[0, 5] == 1.5


def test_a_common_prefix_is_run_once_and_changes_no_token(
    engine: TransformersEngine, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SamplingParams(max_tokens=LIMIT, repetition_penalty=1.2)
    want = plainly(engine, rows, settings)
    head = common_prefix(rows)
    assert len(head) > 10
    assert all(row[: len(head)] == head for row in rows)
    for least, share in ((0, True), (10**9, False)):
        monkeypatch.setattr(decoding, "MIN_PREFIX_SAVING", least)
        batch = prepare(engine.model, rows, engine.pad)
        assert batch.tokens.shape[1] == max(map(len, rows)) - (len(head) if share else 0)
        assert decode(engine.model, rows, list("abcde"), settings, (), engine.pad) == want
        drafts = [row[:7] for row in want]
        got = decode_drafted(engine.model, rows, drafts, settings, (), engine.pad, 3)
        assert [answer.tokens for answer in got] == want


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == [1, 2]
    assert common_prefix([[1, 2], [1, 2]]) == [1]  # one token of each is left to run
    assert common_prefix([[1, 2, 3], [1, 2]]) == [1]
    assert common_prefix([[3], [4]]) == []
    assert common_prefix([[5, 6, 7]]) == [5, 6]


# --- the engine and the file ------------------------------------------------------------------------------------------

PROMPTS = [Prompt(id=f"p{i}", messages=(Message("user", text),)) for i, text in enumerate(TEXTS)]


def by_id(batches: Any) -> dict[str, str]:
    return {c.prompt_id: c.text for batch in batches for c in batch}


def test_completions_count_accepted_draft_tokens(engine: TransformersEngine) -> None:
    settings = SamplingParams(max_tokens=LIMIT, repetition_penalty=1.2)
    plain = by_id(engine.complete(PROMPTS, settings))
    drafts = {"p0": plain["p0"], "p1": "something else", "p2": plain["p2"][:9]}
    made = [c for batch in engine.complete(PROMPTS, settings, drafts=drafts) for c in batch]
    assert {c.prompt_id: c.text for c in made} == plain
    accepted = {c.prompt_id: c.made_by["accepted"] for c in made}
    assert accepted["p3"] == accepted["p4"] == 0 < accepted["p2"] <= accepted["p0"]
    assert accepted_share(made) == sum(accepted.values()) / sum(c.tokens for c in made)
    assert accepted_share([]) is None
    assert accepted_share(c for batch in engine.complete(PROMPTS, settings) for c in batch) is None


def test_drafts_are_ignored_when_sampling(engine: TransformersEngine) -> None:
    settings = SamplingParams(max_tokens=6, temperature=0.9)
    plain = list(engine.complete(PROMPTS, settings))
    assert list(engine.complete(PROMPTS, settings, drafts={"p0": "x"})) == plain


def test_a_model_with_sliding_windows_ignores_drafts(tiny_tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=1, sliding_window=8, **sizes)
    assert not drafting.supported(config)
    torch.manual_seed(0)
    engine = TransformersEngine(MistralForCausalLM(config), tiny_tokenizer, batch_size=2)
    settings = SamplingParams(max_tokens=6)
    plain = by_id(engine.complete(PROMPTS, settings))
    assert by_id(engine.complete(PROMPTS, settings, drafts=plain)) == plain


@pytest.mark.parametrize(
    ("kind", "options", "may"),
    [
        ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 2}, False),
        ("gpt_neo", {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "attention_types": [[["global"], 2]]}, False),
        ("llama", {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}, True),
    ],
)
def test_a_model_that_counts_columns_of_its_cache_gets_no_drafts(kind: str, options: dict[str, Any], may: bool) -> None:
    config = transformers.AutoConfig.for_model(kind, vocab_size=50, **options)
    assert drafting.supported(config) is may


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("drawn", [0.0, 1.0], ids=["greedy", "sampled"])
def test_finished_rows_stay_in_the_batch_of_a_recurrent_model(drawn: float) -> None:
    config = transformers.Lfm2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    rows = [[(7 * i + j) % 90 + 3 for j in range(4 + 3 * i)] for i in range(6)]
    settings, keys = SamplingParams(max_tokens=10, temperature=drawn), [str(i) for i in range(6)]
    whole = [decode(model, [row], [key], settings, {1}, 0)[0] for row, key in zip(rows, keys, strict=True)]
    stops = {whole[0][2], whole[3][6]}
    alone = [decode(model, [row], [key], settings, stops, 0)[0] for row, key in zip(rows, keys, strict=True)]
    assert len({len(tokens) for tokens in alone}) > 1
    assert decode(model, rows, keys, settings, stops, 0) == alone


def test_a_killed_run_resumes_to_the_same_bytes(
    engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "DRAFT_BATCHES", 1)
    settings = SamplingParams(max_tokens=6)
    drafts = by_id(engine.complete(PROMPTS, settings))
    complete_to_file(engine, PROMPTS, settings, tmp_path / "whole", made_by={"drafts": 0.2}, drafts=drafts)

    def die(event: Event) -> None:
        if event.done == 2:
            raise KeyboardInterrupt

    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        complete_to_file(engine, PROMPTS, settings, path, made_by={"drafts": 0.2}, drafts=drafts, on_event=die)
    seen: list[int] = []
    made = complete_to_file(
        engine,
        PROMPTS,
        settings,
        path,
        made_by={"drafts": 0.2},
        drafts=drafts,
        on_event=lambda event: seen.append(event.done),
    )
    assert seen[0] == 2
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert all(c.made_by["drafts"] == 0.2 and "settings" in c.made_by for c in made)


def test_known_completions_are_not_generated_again(engine: TransformersEngine, tmp_path: Path) -> None:
    settings = SamplingParams(max_tokens=6)
    some = complete_to_file(engine, PROMPTS[1:3], settings, tmp_path / "some")
    known = {c.key: dataclasses.replace(c, text=c.text + "!") for c in some}
    made = complete_to_file(engine, PROMPTS, settings, tmp_path / "all", known=known)
    assert [c.prompt_id for c in made] == [p.id for p in PROMPTS]
    assert made[1:3] == list(known.values())
    assert complete_to_file(engine, PROMPTS[1:3], settings, tmp_path / "none", known=known) == list(known.values())
