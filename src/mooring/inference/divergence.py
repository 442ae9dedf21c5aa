"""How far a model has moved from the base on the base's own answers: KL(base ‖ model) at each of their tokens."""

import torch

from mooring.inference.lambda_gradient import divergence
from mooring.inference.spans import Spans, answer_logits, batches
from mooring.inference.transformers import TransformersEngine


@torch.inference_mode()
def divergences(engine: TransformersEngine, spans: Spans) -> dict[str, list[float]]:
    """KL(base ‖ model) in nats at each token of the base's answer, by prompt.

    Teacher-forced: the model reads the base's answer, whatever it would have answered itself.

    Args:
        engine: The model.
        spans: The base's answers with its log-probabilities (`base_spans`).
    """
    found: dict[str, list[float]] = {}
    for part in batches(spans):
        logits = answer_logits(engine.model, part, engine.pad)
        for key, base, row in zip(part.keys, part.log_probs, logits, strict=True):
            other = row.float().log_softmax(-1)
            found[key] = divergence(base.to(other.device), other).double().clamp(min=0).tolist()
    return found
