"""Answers to lm-eval's requests, kept batch by batch, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.files import explained


class Kept:
    """Answers of one model by a digest of what was asked: a JSON Lines file that grows with every batch.

    A last line that a kill has cut short is dropped.

    Args:
        path: The file; nothing is kept where there is none.
        made_by: What answers hang on besides the request, as plain values: the model, the engine, the seed.
    """

    def __init__(self, path: Path | None, made_by: Mapping[str, Any]) -> None:
        self._path = path
        self._made_by = json.dumps(made_by, sort_keys=True, default=str)
        self._answers: dict[str, Any] = {}
        self._whole = 0
        """Bytes of the lines that are whole."""
        if path is not None and path.is_file():
            with explained(path):
                self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                return
            if not line.endswith(b"\n"):
                return
            self._whole += len(line)

    def key(self, *request: Any) -> str:
        """The digest of a request: its type and all that it says, as plain values."""
        return hashlib.sha256(json.dumps([self._made_by, *request], default=str).encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep the answers of a batch, by their keys.

        Raises:
            OutputError: The disk is full, or the folder may not be written.
        """
        self._answers.update(answers)
        if self._path is None:
            return
        lines = [json.dumps({"key": key, "answer": answer}, ensure_ascii=False) for key, answer in answers.items()]
        data = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
        with explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.truncate(self._whole)
                file.write(data)
        self._whole += len(data)
