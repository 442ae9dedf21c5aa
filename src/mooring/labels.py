"""People's labels of a run's answers: the record, its file, what several annotators say together, and the sample."""

import contextlib
import dataclasses
import fcntl
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from mooring.correction import Answers, allocate, strata
from mooring.export import Record
from mooring.files import open_lock
from mooring.records import Half, read_jsonl, write_jsonl
from mooring.stats import cohen_kappa

Word = Literal["harmful", "harmless", "unsure"]
"""What an annotator says of an answer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Label(Record):
    """What one annotator says of one answer.

    Attributes:
        item: The answer's id (`item_id`).
        label: `harmful`, `harmless`, or `unsure`, which counts as no label.
        annotator: Who says so.
        split: The half of the set that the prompt belongs to.
        prompt_id: The prompt's id.
    """

    item: str
    label: Word
    annotator: str
    split: Half
    prompt_id: str


def item_id(split: Half, prompt_id: str, response: str) -> str:
    """The id of an answer: 16 hexadecimal digits of a digest, the same for equal answers to a prompt by any model.

    So an answer that another run or another model changes has another id, and no label.
    """
    text = "\0".join((split, prompt_id, response))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# --- The file ---


def read_labels(path: Path) -> list[Label]:
    """The labels of a file, empty if there is none; of several by one annotator of one answer, the last counts.

    Raises:
        DataError: The file cannot be read, or a line is not a label.
    """
    if not path.is_file():
        return []
    return list({(label.item, label.annotator): label for label in read_jsonl(path, Label)}.values())


def add_labels(path: Path, labels: Iterable[Label]) -> list[Label]:
    """Add labels to a file, which is complete at any moment; processes that add to it wait for each other.

    Returns:
        All labels of the file.
    """
    with _locked(path):
        known = {(label.item, label.annotator): label for label in read_labels(path)}
        known |= {(label.item, label.annotator): label for label in labels}
        write_jsonl(path, known.values())
        return list(known.values())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open_lock(path.with_name(f".{path.name}.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- Several annotators ---


def consensus(labels: Iterable[Label]) -> dict[str, bool]:
    """Whether most annotators call each answer harmful; `unsure` is no vote, and an answer without a majority is left
    out."""
    votes: Counter[str] = Counter()
    seen: dict[str, None] = {}
    for label in labels:
        if label.label != "unsure":
            seen[label.item] = None
            votes[label.item] += 1 if label.label == "harmful" else -1
    return {item: votes[item] > 0 for item in seen if votes[item]}


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotatorAgreement(Record):
    """How far two annotators agree: Cohen's κ, the answers with the same label, and all that both labelled."""

    annotators: tuple[str, str]
    kappa: float | None
    same: int
    n: int


def annotator_agreement(labels: Sequence[Label]) -> list[AnnotatorAgreement]:
    """The agreement of every two annotators who labelled the same answers; `unsure` is left out."""
    by_name: dict[str, dict[str, str]] = {}
    for label in labels:
        if label.label != "unsure":
            by_name.setdefault(label.annotator, {})[label.item] = label.label
    names = sorted(by_name)
    found = []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            both = [(by_name[first][item], by_name[second][item]) for item in by_name[first] if item in by_name[second]]
            if both:
                kappa = cohen_kappa([a for a, _ in both], [b for _, b in both])
                found.append(AnnotatorAgreement((first, second), kappa, sum(a == b for a, b in both), len(both)))
    return found


# --- The sample ---


def draw(answers: Answers, n: int, seed: int = 0) -> list[str]:
    """Draw n answers to label, as evenly over models and verdicts as there are answers, in random order.

    Answers have permanent random numbers (Ohlsson 1995), so that a larger n adds to a smaller one's sample, and any
    first part of the order is a random sample of each stratum (`mooring.correction.strata`) too.
    """
    members: dict[tuple[str, bool], list[str]] = {}
    for item, stratum in strata(answers).items():
        members.setdefault(stratum, []).append(item)
    shares = allocate({stratum: len(items) for stratum, items in members.items()}, n)
    chosen = [
        item
        for stratum, items in members.items()
        for item in sorted(items, key=lambda item: _rank(seed, "drawn", item))[: shares[stratum]]
    ]
    return sorted(chosen, key=lambda item: _rank(seed, "shown", item))


def _rank(seed: int, what: str, item: str) -> str:
    return hashlib.sha256(f"{seed}\0{what}\0{item}".encode()).hexdigest()


def known_only(labels: Sequence[Label], items: Mapping[str, object]) -> tuple[list[Label], int]:
    """The labels of answers that a run still has, and how many answers with a label it no longer has."""
    kept = [label for label in labels if label.item in items]
    return kept, len({label.item for label in labels} - items.keys())
