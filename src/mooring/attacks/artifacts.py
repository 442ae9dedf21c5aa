"""Attack texts that others found, applied as data: artifacts of JailbreakBench, test cases of HarmBench, suffixes."""

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mooring.attacks.attack import Option, Technique, asking, request_of
from mooring.bounded import RECORD, parse_json, read_bytes
from mooring.files import expanded
from mooring.records import Prompt

FORMS = (
    "a JailbreakBench artifact (`jailbreaks` with `goal` and `prompt`), HarmBench's test cases (lists of texts by "
    "behavior), or a text file with a suffix per line"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Artifacts:
    """Attack texts of a file.

    Attributes:
        texts: Whole texts to ask, by the request or its id.
        suffixes: Texts to append to any request.
    """

    texts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    suffixes: Sequence[str] = ()

    def of(self, prompt: Prompt) -> Sequence[str]:
        """The texts for a prompt; empty if the file has none."""
        request = request_of(prompt)
        if self.suffixes:
            return [f"{request} {suffix}" for suffix in self.suffixes]
        names = (prompt.id, prompt.id.rpartition(":")[2], _plain(request))
        return next((self.texts[name] for name in names if name in self.texts), ())


def read_artifacts(text: str) -> Artifacts:
    """The attack texts of a file.

    Raises:
        ValueError: The file cannot be read, or has another form.
    """
    path = expanded(text)
    try:
        data = read_bytes(path, RECORD)
        if path.suffix == ".txt":
            lines = [line.strip() for line in data.decode().splitlines()]
            found = Artifacts(suffixes=tuple(dict.fromkeys(line for line in lines if line)))
        else:
            found = Artifacts(_texts(parse_json(data, RECORD)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    if not found.texts and not found.suffixes:
        raise ValueError(f"{text}: is not {FORMS}")
    return found


def _texts(data: object) -> dict[str, list[str]]:
    """Texts by goal (JailbreakBench) or behavior (HarmBench); empty if it is neither."""
    found: dict[str, list[str]] = {}
    if not isinstance(data, Mapping):
        return found
    rows = data.get("jailbreaks")
    if isinstance(rows, Sequence) and not isinstance(rows, str):
        for row in rows:
            if isinstance(row, Mapping) and isinstance(row.get("prompt"), str) and isinstance(row.get("goal"), str):
                found.setdefault(_plain(row["goal"]), []).append(row["prompt"])
        return found
    for behavior, cases in data.items():
        several = cases if isinstance(cases, Sequence) and not isinstance(cases, str) else [cases]
        if texts := [case for case in several if isinstance(case, str)]:
            found[str(behavior)] = texts
            found.setdefault(_plain(str(behavior)), texts)
    return found


def _plain(text: str) -> str:
    """A request for comparison: sets differ in blanks, case and the last mark."""
    return " ".join(text.lower().split()).rstrip(" .?!")


def _apply(prompt: Prompt, artifacts: Artifacts, rng: random.Random) -> Sequence[Prompt]:
    return [asking(prompt, text) for text in artifacts.of(prompt)]


ARTIFACTS = Technique(
    name="artifacts",
    what="The texts that a file has for a request take its place, or each suffix of a file is appended. Requests for "
    "which the file has nothing are not asked. Such texts were found for other models, and may not transfer.",
    source="Chao et al. 2024, JailbreakBench, arXiv:2404.01318; Mazeika et al. 2024, HarmBench, arXiv:2402.04249; "
    "suffixes: Zou et al. 2023, arXiv:2307.15043",
    apply=_apply,
    option=Option(
        what=f"FILE: {FORMS}",
        parse=read_artifacts,
        key=lambda text: re.sub(r"[^A-Za-z0-9_.-]", "-", Path(text).stem),
    ),
    several=True,
)
