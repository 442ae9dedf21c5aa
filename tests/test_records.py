"""Records on disk: what is written is read again, and what cannot be read is named in one line."""

from pathlib import Path

import pytest

from mooring.errors import DataError
from mooring.records import Completion, Likelihood, Message, Prompt, from_dict, read_jsonl, write_jsonl

GOOD = '{"prompt_id": "a", "text": "é", "tokens": 1, "finish": "stop"}'


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    prompts = [
        Prompt(id="a", messages=(Message("system", "s"), Message("user", "naïve?")), reference="∑", extra={"k": "v"})
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    assert read_jsonl(tmp_path / "p.jsonl", Prompt) == prompts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.jsonl: No such file or directory; name a file"),
        (b"\xff\xfe\x00{}\n", "a.jsonl: is not UTF-8 text"),
        (f"{GOOD}\nnull\n".encode(), "a.jsonl:2: not a Completion record: NoneType"),
        (f"{GOOD}\n[[1, 2]]\n".encode(), "a.jsonl:2: not a Completion record: list"),
        (f"{GOOD}\n3\n".encode(), "a.jsonl:2: not a Completion record: int"),
        (f"{GOOD}\n{{\n".encode(), "a.jsonl:2: "),
        (b'{"text": "b"}\n', "a.jsonl:1: not a Completion record"),
    ],
    ids=["missing", "binary", "null", "list", "number", "cut", "field"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_jsonl(path, Completion)
    assert f"{tmp_path}/{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["true", '"0.5"', "[0.5]", "NaN", "1e999"])
def test_a_number_is_a_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt_id": "a", "nll": {value}, "tokens": 1}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: "):
        read_jsonl(path, Likelihood)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        read_jsonl(tmp_path, Completion)


def test_a_prompt_without_messages_is_refused() -> None:
    for messages in (None, [3], [{"role": "user"}]):
        with pytest.raises(DataError, match="not a Prompt record"):
            from_dict(Prompt, {"id": "a", "messages": messages})
