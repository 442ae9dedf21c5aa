"""A cache of a model's answers to lm-eval's requests, written per batch, so that an interrupted run resumes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring import jsonio
from mooring.files import explained


class AnswerCache:
    """Answers of one model by a digest of the request: a JSON Lines file that grows with each batch.

    A last line that an interruption left incomplete is dropped. Without a path, answers are kept in memory only.
    `made_by` is what answers depend on besides the request: the model, the engine, the seed.
    """

    def __init__(self, path: Path | None, made_by: Mapping[str, Any]) -> None:
        self._path = path
        self._made_by = json.dumps(made_by, sort_keys=True, default=str)
        self._answers: dict[str, Any] = {}
        self._size = 0
        """Bytes of the complete lines."""
        if path is not None and path.is_file():
            with explained(path):
                self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        for line in data.split(b"\n")[:-1]:
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return
            self._size += len(line) + 1

    def key(self, *request: Any) -> str:
        """The digest of a request: its type and its arguments, as plain values."""
        return hashlib.sha256(json.dumps([self._made_by, *request], default=str).encode()).hexdigest()

    def __contains__(self, key: object) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Store the answers of a batch, by their keys."""
        self._answers.update(answers)
        if self._path is None:
            return
        lines = [jsonio.dumps({"key": key, "answer": answer}) for key, answer in answers.items()]
        data = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
        with explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.truncate(self._size)
                file.write(data)
        self._size += len(data)
