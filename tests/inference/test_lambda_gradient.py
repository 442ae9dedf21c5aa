"""Losses of a merge and their derivatives with respect to λ, on tiny models in float64."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from mooring.inference.decode import pad_left
from mooring.inference.lambda_gradient import GroupedMerge
from mooring.inference.spans import ROWS, Spans, base_spans, reference_spans
from mooring.inference.transformers import TransformersEngine, response_nll
from mooring.records import Message, Prompt

PROMPTS = [
    Prompt(id=str(i), messages=(Message("user", "Set the alarm " * (1 + i % 3)),), reference="alarm.set(1)"[: 4 + i])
    for i in range(ROWS + 2)
]
"""More than fit one batch, of different lengths."""


@dataclasses.dataclass
class Pair:
    """A base as an engine, what tuning changed, and the groups of the weights."""

    engine: TransformersEngine
    base: dict[str, torch.Tensor]
    changes: dict[str, torch.Tensor]
    group_of: dict[str, int | None]

    def merge(self, other: float = 0.3) -> GroupedMerge:
        return GroupedMerge(
            self.engine.model, self.base, self.changes, self.group_of, other=other, groups=3, pad=self.engine.pad
        )


@pytest.fixture(scope="module")
def pair(tiny_model_folder: Path, save_tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Attention, mlp and norms in groups; embeddings in none; everything in float64."""
    tuned_folder = save_tiny_model(tmp_path_factory.mktemp("tuned") / "tuned", seed=1)
    engine = TransformersEngine.load(tiny_model_folder, device="cpu")
    tuned = TransformersEngine.load(tuned_folder, device="cpu").model.double()
    engine.model.double()
    base = {name: weight.detach().clone() for name, weight in engine.model.named_parameters()}
    changes = {name: 0.2 * (w.detach() - base[name]) for name, w in tuned.named_parameters() if "k_proj" not in name}
    kinds = ("attn", "mlp", "norm")
    group_of = {name: next((i for i, kind in enumerate(kinds) if kind in name), None) for name in changes}
    assert None in group_of.values()
    return Pair(engine, base, changes, group_of)


def finite_differences(merge: GroupedMerge, lams: Sequence[float], spans: Spans, step: float = 1e-5) -> list[float]:
    found = []
    for group in range(len(lams)):
        up, down = ([lam + sign * step * (i == group) for i, lam in enumerate(lams)] for sign in (1, -1))
        found.append((merge.loss_and_gradient(up, spans)[0] - merge.loss_and_gradient(down, spans)[0]) / (2 * step))
    return found


@pytest.mark.parametrize("kind", ["task", "divergence"])
def test_the_derivative_is_that_of_finite_differences(bases: dict[str, Path], kind: str) -> None:
    """On a GPT-2, which computes all of it in float64; Llama's norms are computed in float32."""
    model = GPT2LMHeadModel.from_pretrained(bases["gpt2"]).double().eval()
    draw = torch.Generator().manual_seed(0)
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    changes = {
        name: 0.1 * torch.randn(weight.shape, generator=draw, dtype=torch.float64) for name, weight in base.items()
    }
    kinds = ("attn", "mlp", "ln_")
    group_of = {name: next((i for i, kind in enumerate(kinds) if kind in name), None) for name in changes}
    rows = [torch.randint(50, (4 + i % 5,), generator=draw).tolist() for i in range(ROWS + 2)]
    log_probs = [torch.randn(2, 50, generator=draw).log_softmax(-1) for _ in rows] if kind == "divergence" else []
    spans = Spans([str(i) for i in range(len(rows))], rows, [len(row) - 2 for row in rows], log_probs)
    merge = GroupedMerge(model, base, changes, group_of, other=0.3, groups=3, pad=0)
    lams = [0.4, 0.7, 0.1]
    loss, gradient = merge.loss_and_gradient(lams, spans)
    assert loss > 0
    assert min(map(abs, gradient)) > 1e-3
    assert gradient == pytest.approx(finite_differences(merge, lams, spans), rel=1e-7)


def test_the_task_loss_is_that_of_the_merged_model(pair: Pair) -> None:
    lams, spans = [0.4, 0.7, 0.1], reference_spans(pair.engine, PROMPTS)
    loss, _ = pair.merge(other=0.3).loss_and_gradient(lams, spans)
    weights = dict(pair.engine.model.named_parameters())
    with torch.no_grad():
        for name, change in pair.changes.items():
            group = pair.group_of[name]
            weights[name].copy_(pair.base[name] + (0.3 if group is None else lams[group]) * change)
        wanted = response_nll(pair.engine.model, list(zip(spans.rows, spans.starts, strict=True)), pair.engine.pad)
        for name, weight in weights.items():
            weight.copy_(pair.base[name])
    assert loss == pytest.approx(sum(wanted) / spans.tokens, rel=1e-5)  # response_nll sums in float32


def test_the_divergence_is_zero_at_the_base_and_that_of_the_definition_elsewhere(pair: Pair) -> None:
    spans = base_spans(pair.engine, PROMPTS, 3)
    assert spans.tokens <= 3 * len(PROMPTS)
    none = pair.merge(other=0.0).loss_and_gradient([0.0] * 3, spans)
    assert none[0] == pytest.approx(0, abs=1e-6)
    assert none[1] == pytest.approx([0] * 3, abs=1e-4)  # the base's distribution is kept in float32
    loss, _ = pair.merge(other=0.0).loss_and_gradient([1.0, 0.0, 0.0], spans)
    rows = list(zip(spans.rows, spans.starts, strict=True))

    def log_probs() -> list[torch.Tensor]:
        ids, mask, positions = pad_left(spans.rows, pair.engine.pad, "cpu")
        logits = pair.engine.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        sizes = [len(row) - start for row, start in rows]
        return [each[-size - 1 : -1].log_softmax(-1) for each, size in zip(logits, sizes, strict=True)]

    weights = dict(pair.engine.model.named_parameters())
    with torch.no_grad():
        base = log_probs()
        for name, change in pair.changes.items():
            weights[name].add_(change, alpha=float(pair.group_of[name] == 0))
        merged = log_probs()
        for name, weight in weights.items():
            weight.copy_(pair.base[name])
    wanted = sum((p.exp() * (p - q)).sum().item() for p, q in zip(base, merged, strict=True)) / spans.tokens
    assert loss == pytest.approx(wanted, rel=1e-5)


def test_the_models_own_weights_are_left_alone(pair: Pair) -> None:
    pair.merge().loss_and_gradient([0.4, 0.7, 0.1], reference_spans(pair.engine, PROMPTS))
    for name, weight in pair.engine.model.named_parameters():
        assert weight.equal(pair.base[name])
        assert weight.grad is None
