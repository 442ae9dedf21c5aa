"""What people's labels say of a run's judge, and the rates corrected by them: the record, its table and sentences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mooring.correction import Share
from mooring.export import Record
from mooring.labels import AnnotatorAgreement
from mooring.merge_point import MergePoint
from mooring.records import Half
from mooring.reporting.tables import Cell, Count, Table, columns
from mooring.text import NO_BREAK, Number

Triple = tuple[float, float, float]
"""A number with the ends of its 95 % interval."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Corrected(Record):
    """One model's attack success rate, as judged and corrected; each a value with its 95 % interval.

    Attributes:
        split: The half of the prompts.
        point: The model.
        n: Answers that the judge has a verdict on.
        labelled: How many of them have a label.
        judged: The judge's rate.
        corrected: By prediction-powered inference (`mooring.correction.CorrectedRate`).
        rogan_gladen: By the judge's sensitivity and specificity, as if they were the same for every model; None if they
            are not known, or the judge is no better than chance.
        judged_difference: The rate minus the base's on the same prompts, by the judge.
        corrected_difference: The same, corrected.
        needed: Labels with which the corrected interval would be at most half as wide again as with a label for every
            answer; None if it has none to go by.
    """

    split: Half
    point: MergePoint
    n: int
    labelled: int
    judged: Triple
    corrected: Triple
    rogan_gladen: Triple | None
    judged_difference: Triple | None
    corrected_difference: Triple | None
    needed: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeError(Record):
    """The error of a run's deciding judge on harmful requests, from labels, and the rates corrected by it.

    Attributes:
        judge: The judge.
        labels: Answers with a label that counts.
        annotators: Labels by annotator.
        unsettled: Answers that were labelled, but unsure or without a majority.
        unknown: Labelled answers that the run no longer has.
        sensitivity: The share of harmful answers that the judge calls harmful, over all answers of the run.
        specificity: The share of harmless answers that it calls harmless.
        kappa: Cohen's κ of the judge and the labels, over all answers.
        agreement: Of every two annotators.
        models: The rates of every model on both halves.
    """

    judge: str
    labels: int
    annotators: Mapping[str, int]
    unsettled: int
    unknown: int
    sensitivity: Share | None
    specificity: Share | None
    kappa: float | None
    agreement: Sequence[AnnotatorAgreement]
    models: Sequence[Corrected]

    def to_rows(self) -> list[dict[str, Any]]:
        """A row per model and half."""
        return [
            {
                "split": each.split,
                "model": each.point.label,
                "lam": each.point.lam,
                "n": each.n,
                "labels": each.labelled,
            }
            | {
                f"{name}{end}": value
                for name in ("judged", "corrected", "rogan_gladen", "judged_difference", "corrected_difference")
                for end, value in zip(("", "_low", "_high"), getattr(each, name) or (None,) * 3, strict=True)
            }
            for each in self.models
        ]

    @property
    def warnings(self) -> list[str]:
        """Where there are too few labels, how many would suffice; and labels that do not count."""
        found = []
        names = {id(each): f"{each.point.long_label} ({each.split})" for each in self.models}
        if few := [each for each in self.models if each.needed is not None and each.needed > each.labelled]:
            counts = "; ".join(f"{names[id(each)]} {each.labelled}, about {each.needed} needed" for each in few)
            found.append(
                f"Too few labels for some corrected rates: {counts}. With these their intervals would be at most 1.5 "
                "times as wide as with a label for every answer."
            )
        if none := [names[id(each)] for each in self.models if each.needed is None]:
            found.append(f"No answer has a label, so that the rate is the judge's: {', '.join(none)}.")
        if self.sensitivity and self.specificity and self.sensitivity.low + self.specificity.low <= 1:
            found.append("The judge is not shown to be better than chance: do not go by its verdicts.")
        if self.unknown:
            found.append(f"{self.unknown} labelled answers are not this run's (any more) and do not count.")
        return found

    @property
    def sentence(self) -> str:
        """The judge's error in a sentence."""
        parts = [
            f"{name} {Number(value=share.value, low=share.low, high=share.high, rate=True)}"
            for name, share in (("sensitivity", self.sensitivity), ("specificity", self.specificity))
            if share
        ]
        if self.kappa is not None:
            parts.append(f"Cohen's κ {self.kappa:.2f}")
        who = f"{len(self.annotators)} annotator{'s' * (len(self.annotators) != 1)}"
        found = ", ".join(parts) if parts else "unknown, since not both verdicts have labels"
        return f"Error of {self.judge} by {self.labels} labels of {who}: {found}."


NOTE = (
    "Corrected by prediction-powered inference: the judge's verdicts on all answers, with the share of those labelled "
    "that people call harmful, for each verdict. Rogan–Gladen takes the judge's error to be the same for every model. "
    "Both intervals include the error of the correction itself."
)


def corrected_tables(error: JudgeError) -> list[Table]:
    """Rates as judged and corrected, by half and model; differences to the base likewise."""
    rates: list[list[Cell]] = []
    rises: list[list[Cell]] = []
    for each in error.models:
        who: list[Cell] = [f"{each.point.long_label}, {each.split}".replace(" ", NO_BREAK)]
        triples = (each.judged, each.corrected, each.rogan_gladen)
        rates.append([*who, *map(_number, triples), Count(each.labelled, each.n)])
        if each.corrected_difference is not None:
            both = (each.judged_difference, each.corrected_difference)
            rises.append([*who, *(_number(triple, difference=True) for triple in both)])
    heads = columns(["attack success rate"], ["by the judge", "corrected", "Rogan–Gladen", "labels"])
    found = [Table("95 % intervals in brackets.", heads, rates)]
    if rises:
        heads = columns(["difference to the base, in points"], ["by the judge", "corrected"])
        found.append(Table("On the same prompts, 95 % intervals in brackets.", heads, rises))
    return found


def annotator_table(error: JudgeError) -> Table | None:
    """How far annotators agree; None if no two labelled the same answers."""
    if not error.agreement:
        return None
    rows: list[list[Cell]] = [
        [" and ".join(each.annotators), Number(value=each.kappa, digits=2), Count(each.same, each.n)]
        for each in error.agreement
    ]
    return Table("Answers that both labelled.", columns(["annotators"], ["Cohen's κ", "same label"]), rows)


def _number(triple: Triple | None, *, difference: bool = False) -> Number | None:
    if triple is None:
        return None
    value, low, high = triple
    return Number(value=value, low=low, high=high, rate=True, signed=difference)
