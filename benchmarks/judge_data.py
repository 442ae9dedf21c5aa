"""The labelled responses on which the built-in judges are trained and measured, read from a folder of the user's.

No text of them is in this repository. `SOURCES` and `MEASURED` say where each is from, under which licence, and the
SHA-256 of the files that were used; `git show COMMIT:PATH` of the repository named there gives a file.
"""

import csv
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
csv.field_size_limit(1 << 30)

SOURCES = {
    "xstest": {
        "what": "completions on XSTest's prompts (Röttger et al. 2024), labelled by two people",
        "from": "github.com/paul-rottger/exaggerated-safety d7bb5bd, model_completions/",
        "licence": "CC BY 4.0 (labels, prompts); completions under the terms of Meta, Mistral and OpenAI",
    },
    "refusal_direction": {
        "what": "completions of five chat models (Arditi et al. 2024), of those on which a list of phrases and Llama "
        "Guard 2 agree, or that answer ordinary requests",
        "from": "github.com/andyrdt/refusal_direction 9d852fa, pipeline/runs/MODEL/completions/*_evaluations.json",
        "licence": "Apache 2.0",
    },
    "gptfuzz": {
        "what": "answers to jailbreak templates (Yu et al. 2023), labelled by people as jailbroken or not",
        "from": "github.com/sherdencooper/GPTFuzz 1eddeb5, datasets/responses_labeled/",
        "licence": "MIT",
    },
    "jbb_artifacts": {
        "what": "jailbroken answers of JailbreakBench's artifacts (Chao et al. 2024), labelled by its judge",
        "from": "github.com/JailbreakBench/artifacts 909e68c, attack-artifacts/",
        "licence": "MIT",
    },
}
"""What the classifier is trained on."""
MEASURED = {
    "xstest_again": {
        "what": "completions of newer models on XSTest's prompts and on 450 further ones, labelled by two people",
        "from": "github.com/mdazizulaman/XSTest-Replication-and-Extension 1203651, model_completions/*.csv of "
        "Replication.zip and New_data.zip",
        "licence": "none given: measured, not trained on",
    },
    "xstest_gpt4": {
        "what": "GPT-4's labels of XSTest's completions, asked without examples",
        "from": "github.com/paul-rottger/exaggerated-safety d7bb5bd, "
        "evaluation/automated_evaluation_labels/*_gpteval.csv",
        "licence": "CC BY 4.0",
    },
}
"""What it is measured on alone."""
XSTEST = {
    "gpt4": "openai",
    "llama2new": "llama2",
    "llama2orig": "llama2",
    "mistralguard": "mistral",
    "mistralinstruct": "mistral",
}
"""Models of XSTest's completions, and their families."""
AGAIN = {
    "gpt4o-mini": "openai",
    "llama3.0": "llama3",
    "llama3.1": "llama3",
    "mistrG": "mistral",
    "mistrI": "mistral",
}
"""Models of the later completions on XSTest's prompts, and their families."""
CLEAR = {
    "gemma-2b-it": "gemma",
    "llama-2-7b-chat-hf": "llama2",
    "meta-llama-3-8b-instruct": "llama3",
    "qwen-1_8b-chat": "qwen",
    "yi-6b-chat": "yi",
}
"""Models of the clear answers, and their families."""
LABELS = {"1_full_compliance": "complied", "2_full_refusal": "refused", "3_partial_refusal": "partly"}


class Row(NamedTuple):
    """A response with its label: refused, partly or complied."""

    source: str
    model: str
    family: str
    request: str
    response: str
    label: str


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def xstest(data: Path) -> Iterator[Row]:
    """Completions on XSTest's prompts."""
    for model, family in XSTEST.items():
        for row in _csv(data / "xstest" / f"xstest_v2_completions_{model}.csv"):
            yield Row("xstest", model, family, row["prompt"], row["completion"], LABELS[row["final_label"]])


def again(data: Path) -> Iterator[Row]:
    """Completions of newer models on XSTest's prompts (`again old`), and on further ones (`again new`)."""
    for part, stem in (("old", "xstest"), ("new", "xstest_newdata")):
        for model, family in AGAIN.items():
            for row in _csv(data / "xstest_again" / f"{stem}_v2_completions_{model}.csv"):
                label = LABELS[row["final_label"]]
                yield Row(f"again {part}", model, family, row["prompt"], row["completion"], label)


def annotations(data: Path) -> dict[str, list[tuple[bool, bool]]]:
    """Whether XSTest's completions refuse, in pairs: by its two people, and by GPT-4 and the label."""
    people, gpt4 = list[tuple[bool, bool]](), list[tuple[bool, bool]]()
    for model in XSTEST:
        for row in _csv(data / "xstest" / f"xstest_v2_completions_{model}.csv"):
            people.append((_refuses(row["annotation_1"]), _refuses(row["annotation_2"])))
        for row in _csv(data / "xstest_gpt4" / f"xstest_v2_completions_{model}_gpteval.csv"):
            gpt4.append((_refuses(row["final_label"]), _refuses(row["gpt4_label"])))
    return {"two people with each other": people, "GPT-4 with the label": gpt4}


def _refuses(label: str) -> bool:
    return label.startswith("2_")


def clear(data: Path) -> Iterator[Row]:
    """Completions that clearly refuse or clearly comply."""
    for model, family in CLEAR.items():
        for path in sorted((data / "refusal_direction" / model).glob("*_evaluations.json")):
            for row in json.loads(path.read_text(encoding="utf-8"))["completions"]:
                complies, unsafe = row["is_jailbreak_substring_matching"], row.get("is_jailbreak_llamaguard2")
                ordinary = path.name.startswith("harmless")
                steered = path.name.startswith("harmless_actadd")
                if complies and (unsafe or (ordinary and not steered)):
                    yield Row("clear", model, family, row["prompt"], row["response"], "complied")
                elif not complies and (steered or (not ordinary and not unsafe)):
                    yield Row("clear", model, family, row["prompt"], row["response"], "refused")


def gptfuzz(data: Path, part: str) -> Iterator[Row]:
    """Answers to jailbreak templates; one that was not labelled as jailbroken counts as refused."""
    questions = [row["text"] for row in _csv(data / "gptfuzz" / "question_list.csv")]
    for row in _csv(data / "gptfuzz" / f"{part}.csv"):
        label = "complied" if row["label"] == "1" else "refused"
        question = int(row["question"])
        request = questions[question] if question < len(questions) else ""
        yield Row(f"gptfuzz {part}", "gpt-3.5", "openai", request, row["Response"], label)


def jailbroken(data: Path) -> Iterator[Row]:
    """Jailbroken answers of JailbreakBench's artifacts."""
    families = {"llama": "llama2", "vicuna": "vicuna", "gpt": "openai"}
    for path in sorted((data / "jbb_artifacts").rglob("*.json")):
        family = next(name for part, name in families.items() if path.stem.startswith(part))
        for row in json.loads(path.read_text(encoding="utf-8"))["jailbreaks"]:
            if row["response"] and row["jailbroken"]:
                yield Row("jbb_artifacts", path.stem, family, row["goal"], row["response"], "complied")


def made(split: str) -> Iterator[Row]:
    """Responses made up for the tests of this repository (tests/scoring/data), one half of them."""
    path = ROOT / "tests" / "scoring" / "data" / "refusals.jsonl"
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if row["split"] == split:
            yield Row(f"made {split}", row["family"], "made", row["request"], row["response"], row["label"])


def taught(count: int = 800) -> list[Row]:
    """Responses that the package's own tuning rows teach."""
    rows = []
    for name, label in (("harmful", "refused"), ("lookalikes", "complied"), ("ordinary", "complied")):
        path = ROOT / "src" / "mooring" / "data" / "bundled" / f"{name}.jsonl"
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            rows.append(Row("taught", name, "taught", row["prompt"], row["response"], label))
    return sample(rows, count)


def ordinary(shared: Path, count: int = 400) -> list[Row]:
    """Answers that refuse nothing: of ChatDoctor, and rationales of Flan (shared data, MOORING_DATA)."""
    doctor = json.loads((shared / "chatdoctor" / "chatdoctor5k.json").read_text(encoding="utf-8"))
    rows = sample([Row("chatdoctor", "", "people", row["input"], row["output"], "complied") for row in doctor], count)
    flan = []
    for path in sorted((shared / "flan_cot").glob("*.tsv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.replace("\\n", "\n").split("\t")
            if len(fields) == 3:
                flan.append(Row("flan", "", "people", fields[0], fields[2], "complied"))
    return rows + sample(flan, count)


def refusal_labels(shared: Path) -> Iterator[Row]:
    """105 responses with one human label each (shared data, MOORING_DATA)."""
    with (shared / "refusal_labels" / "refusal.csv").open(encoding="utf-8", newline="") as lines:
        next(lines)
        for row in csv.DictReader(lines):
            label = "refused" if row["human_score"] == "1" else "complied"
            yield Row("refusal_labels", "", "several", row["objective"], row["assistant_response"], label)


def cut(rows: Iterable[Row], words: int | None = None, share: float = 0.4) -> list[Row]:
    """Beginnings of responses, of `words` words or of 8 to 40, of a share of the rows that are longer."""
    drawn, found = random.Random(0), []
    for row in rows:
        parts = row.response.split(" ")
        length = words or drawn.choice((8, 12, 16, 20, 30, 40))
        if row.label != "partly" and len(parts) > length and (words or drawn.random() < share):
            found.append(row._replace(source=f"cut {row.source}", response=" ".join(parts[:length])))
    return found


def sample(rows: list[Row], count: int) -> list[Row]:
    """Some rows, by a fixed seed."""
    return random.Random(0).sample(rows, min(count, len(rows)))


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))
