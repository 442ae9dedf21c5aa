"""The search for λ by gradient in a run: its losses on the run's own models."""

from collections.abc import Sequence
from typing import Any

from mooring.errors import ModelError
from mooring.events import Event, OnEvent
from mooring.inference.lambda_gradient import GroupedMerge
from mooring.inference.spans import base_spans, reference_spans
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.further_sets import SearchSets
from mooring.pipeline.module_groups import Level, grouped
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.records import GradientSearch, SearchLosses
from mooring.selection.by_gradient import Measured, minimize

ANSWER_TOKENS = 8
"""How many tokens of the base's answers are compared. Whether a model refuses shows in the first ones (Qi et al. 2024,
"Safety alignment should be made more than just a few tokens deep")."""


def search_gradient(
    spec: SweepSpec, single: MergePoint, sets: SearchSets, level: Level, on_event: OnEvent
) -> GradientSearch:
    """Search λ by group of weights around a single λ.

    The task's loss is minimized; the divergence from the base at the first tokens of its own answers is at most that of
    the single λ, for each kind of requests.

    Args:
        spec: The base and the tuned model.
        single: The single λ.
        sets: The prompts.
        level: What has a λ of its own.
        on_event: Receives a line for each evaluation.

    Raises:
        ModelError: transformers renames the weights so that they cannot be grouped as they are stored
            (`model.renamed_weights`).
        DataError: A prompt does not fit the context.
    """
    with MergedModel(spec) as merged:
        engine = merged.at(TUNED.lam, plain=True)
        tuned = _weights(engine.model)
        engine = merged.at(BASE.lam, plain=True)
        base = _weights(engine.model)
        spans = {
            kind: reference_spans(engine, prompts) if kind == "task" else base_spans(engine, prompts, ANSWER_TOKENS)
            for kind, prompts in sets.items()
        }
        changes = {name: tuned[name].float() - base[name].float() for name in base if not tuned[name].equal(base[name])}
        del tuned
        group_of = grouped(list(base), level)
        names = sorted({group for name in changes if (group := group_of[name])}, key=list(group_of.values()).index)
        if not {*names} <= {*grouped(spec.tensor_names, level).values()}:
            what = f"select.groups: {level}: transformers loads these weights under other names than they are stored"
            hint = "use another of modules, layers and tensors"
            raise ModelError(what, hint, code="model.renamed_weights")
        place = {name: number for number, name in enumerate(names)}
        model = GroupedMerge(
            engine.model,
            base,
            changes,
            {name: place[group] if (group := group_of[name]) else None for name in changes},
            other=single.lam,
            groups=len(names),
            pad=engine.pad,
        )
        kinds = ("task", *(kind for kind in sets if kind != "task"))
        count = 0

        def measure(lams: Sequence[float]) -> Measured:
            nonlocal count
            count += 1
            found = {kind: model.loss_and_gradient(lams, spans[kind]) for kind in kinds}
            values = ", ".join(f"{kind} {value:.4f}" for kind, (value, _) in found.items())
            on_event(Event(step="search_gradient", kind="info", message=f"losses, evaluation {count}: {values}"))
            return Measured([value for value, _ in found.values()], [gradient for _, gradient in found.values()])

        best = minimize([single.lam] * len(names), measure)
    start, end = (SearchLosses(**dict(zip(kinds, values, strict=True))) for values in (best.start, best.end))
    lams = [round(lam, 3) for lam in best.lams]
    point = MergePoint(single.lam, dict(zip(names, lams, strict=True)))
    return GradientSearch(
        point=point,
        groups=names,
        lams=lams,
        single=start,
        found=end,
        evaluations=best.evaluations,
        sentence=_sentence(point, single, len(names), start, end),
    )


def not_searched(single: MergePoint, why: str) -> GradientSearch:
    """The result of a search that there was no reason for."""
    sentence = f"Nothing was searched: {why}."
    return GradientSearch(point=single, groups=[], lams=[], single=None, found=None, evaluations=0, sentence=sentence)


def _sentence(point: MergePoint, single: MergePoint, groups: int, start: SearchLosses, end: SearchLosses) -> str:
    if not point.by_module:
        what = "with a lower task loss that stay as near to the base as"
        return f"No λ of {groups} groups were found {what} {single.label}."
    ordinary = "" if end.ordinary is None else f", at ordinary ones {end.ordinary:.3g} (limit {start.ordinary:.3g})"
    return (
        f"On the prompts of the search the task loss fell from {start.task:.4f} to {end.task:.4f} nats per token; the "
        f"divergence from the base at harmful requests is {end.harmful:.3g} (limit {start.harmful:.3g}){ordinary}."
    )


def _weights(model: Any) -> dict[str, Any]:
    """Copies of a model's weights by name, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
