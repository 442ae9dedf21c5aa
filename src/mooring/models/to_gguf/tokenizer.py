"""A tokenizer as GGUF holds it: tokens, their types, merges or scores, and the name of the rule that splits text.

llama.cpp implements three kinds: `gpt2` is byte-level BPE, `llama` is SentencePiece's BPE with byte fallback, `t5` is
SentencePiece's Unigram. Byte-level BPE needs the name of a rule that splits text before merging; llama.cpp has them in
C++, by name (`tokenizer.ggml.pre`).
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mooring.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens (`llama_token_type`)."""

_BYTE_LEVEL = "byte level"
_DIGIT = r"\p{N}"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_CASED_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_QWEN35 = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = rf"{_CASED[0]}{_ENGLISH}?|{_CASED[1]}{_ENGLISH}?|\p{{N}}{{1,3}}|{_CASED_END}"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_END}"

SPLITTERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_BYTE_LEVEL,), False): "gpt-2",
    ((_DIGIT, _BYTE_LEVEL), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_GPT4O,), False): "gpt-4o",
    ((_TEKKEN,), True): "tekken",
    ((_TEKKEN,), False): "tekken",
}
"""llama.cpp's name of a rule, by the expressions that split text one after the other, and whether a whole word that is
a token is taken without merging."""


def metadata(tokenizer: Any, rows: int) -> dict[str, Any]:
    """The metadata of a tokenizer, keys without `tokenizer.`; only values of a fast tokenizer are used.

    Args:
        tokenizer: A tokenizer of transformers.
        rows: How many rows the embedding has; rows beyond the tokenizer's tokens get tokens that never occur.

    Raises:
        ModelError: llama.cpp does not have such a tokenizer, or it has more tokens than `rows`.
    """
    name = tokenizer.name_or_path
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unsupported(name, "has no tokenizer.json")
    described = json.loads(backend.to_str())
    model = described["model"]
    vocabulary: dict[int, str] = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(vocabulary) >= rows:
        what = f"{name}: the tokenizer has {max(vocabulary) + 1} tokens, and the embedding {rows} rows"
        raise ModelError(what, "give the model the tokenizer that it was trained with", code="model.tokenizer_mismatch")
    tokens = [vocabulary.get(number, f"[PAD{number}]") for number in range(rows)]
    kinds = [NORMAL if number in vocabulary else UNUSED for number in range(rows)]
    for number, token in tokenizer.added_tokens_decoder.items():
        kinds[number] = CONTROL if token.special or _looks_special(token.content) else USER_DEFINED
        tokens[number] = token.content
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        values = _byte_level(name, described)
    elif model["type"] == "BPE":
        values = _sentencepiece(model, tokens)
    elif model["type"] == "Unigram":
        values = _unigram(described, tokens)
    else:
        raise _unsupported(name, f"is of the kind {model['type']}")
    if values["ggml.model"] != "gpt2":
        for number, token in enumerate(tokens):
            if kinds[number] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                kinds[number] = BYTE
            elif kinds[number] == USER_DEFINED:
                tokens[number] = token.replace("\u2581", " ")
        if isinstance(unknown := tokenizer.unk_token_id, int):
            kinds[unknown] = UNKNOWN
        values["ggml.add_space_prefix"] = _adds_space(described)
    values |= {"ggml.tokens": tokens, "ggml.token_type": kinds}
    return values | dict(_special(tokenizer))


def _byte_level(name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE: its merges, and the name of its rule."""
    model = described["model"]
    steps = tuple(_splits(described.get("pre_tokenizer")))
    rule = SPLITTERS.get((steps, bool(model.get("ignore_merges"))))
    if rule is None:
        raise _unsupported(name, "splits text by a rule that llama.cpp is not known to have")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"ggml.model": "gpt2", "ggml.pre": rule, "ggml.merges": merges}


def _splits(step: Any) -> Iterator[str]:
    """The expressions by which a pre-tokenizer of `tokenizer.json` splits text; an unknown step is named."""
    if step is None:
        return
    kind = step["type"]
    if kind == "Sequence":
        for each in step["pretokenizers"]:
            yield from _splits(each)
    elif kind == "ByteLevel" and not step.get("add_prefix_space"):
        if step.get("use_regex", True):
            yield _BYTE_LEVEL
    elif kind == "Digits" and step.get("individual_digits"):
        yield _DIGIT
    elif kind == "Split" and step["behavior"] in ("Isolated", "Removed") and "Regex" in step["pattern"]:
        yield step["pattern"]["Regex"]
    else:
        yield f"unknown: {kind}"


def _sentencepiece(model: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """SentencePiece's BPE: what comes earlier among the merges has a higher score, which llama.cpp merges first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    last = float(-len(ranks) - 1)
    scores = [float(-ranks[token]) if token in ranks else last for token in tokens]
    return {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores}


def _unigram(described: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """SentencePiece's Unigram: log-probabilities, and the map that normalizes characters."""
    known = dict(described["model"]["vocab"])
    values: dict[str, Any] = {
        "ggml.model": "t5",
        "ggml.pre": "default",
        "ggml.scores": [float(known.get(token, 0.0)) for token in tokens],
        "ggml.remove_extra_whitespaces": False,
    }
    for step in _flat(described.get("normalizer"), "normalizers"):
        if step["type"] == "Precompiled" and step.get("precompiled_charsmap"):
            values["ggml.precompiled_charsmap"] = list(base64.b64decode(step["precompiled_charsmap"]))
        if step["type"] == "Replace" and step.get("pattern", {}).get("Regex") == " {2,}":
            values["ggml.remove_extra_whitespaces"] = True
    return values


def _flat(step: Any, key: str) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] == "Sequence":
        for each in step[key]:
            yield from _flat(each, key)
    else:
        yield step


def _adds_space(described: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front, as SentencePiece does by default."""
    before = any(step["type"] == "Prepend" for step in _flat(described.get("normalizer"), "normalizers"))
    marks = (s for s in _flat(described.get("pre_tokenizer"), "pretokenizers") if s["type"] == "Metaspace")
    return before or any(step.get("prepend_scheme", "always") != "never" for step in marks)


def _special(tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """Ids of special tokens, whether BOS and EOS are added to a text (found by trial), and the chat template."""
    for key, field in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{field}_token_id")
        if isinstance(number, int):
            yield f"ggml.{key}_token_id", number
    ids = tokenizer("a")["input_ids"]
    yield "ggml.add_bos_token", tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    yield "ggml.add_eos_token", tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id]
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if template:
        yield "chat_template", template


def _looks_special(token: str) -> bool:
    """Whether a token marks structure, though the tokenizer does not call it special (Phi, DeepSeek)."""
    return bool(re.fullmatch(r"<[|\uff5c].*[|\uff5c]>", token))


def _unsupported(name: str, what: str) -> ModelError:
    hint = "use another engine, or llama.cpp's own converter"
    return ModelError(f"{name}: the tokenizer {what}", hint, code="model.gguf_tokenizer")
