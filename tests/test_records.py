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
    ("content", "code", "place"),
    [
        (None, "data.unreadable", "a.jsonl: "),
        (b"\xff\xfe\x00{}\n", "data.not_utf8", "a.jsonl: "),
        (f"{GOOD}\nnull\n".encode(), "data.bad_record", "a.jsonl:2: "),
        (f"{GOOD}\n[[1, 2]]\n".encode(), "data.bad_record", "a.jsonl:2: "),
        (f"{GOOD}\n3\n".encode(), "data.bad_record", "a.jsonl:2: "),
        (f"{GOOD}\n{{\n".encode(), "data.bad_record", "a.jsonl:2: "),
        (b'{"text": "b"}\n', "data.bad_record", "a.jsonl:1: "),
    ],
    ids=["missing", "binary", "null", "list", "number", "truncated", "field"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, code: str, place: str) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_jsonl(path, Completion)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{tmp_path}/{place}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["true", '"0.5"', "[0.5]", "NaN", "1e999"])
def test_a_number_is_a_number(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"prompt_id": "a", "nll": {value}, "tokens": 1}}\n')
    with pytest.raises(DataError) as caught:
        read_jsonl(path, Likelihood)
    assert caught.value.code == "data.bad_record"
    assert f"{path}:1: " in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_jsonl(tmp_path, Completion)
    assert caught.value.code == "data.unreadable"


def test_a_lone_surrogate_in_a_text_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD.replace("é", r"\ud800") + "\n")
    assert read_jsonl(path, Completion)[0].text == "\ud800"


def test_a_prompt_without_messages_is_refused() -> None:
    for messages in (None, [3], [{"role": "user"}]):
        with pytest.raises(DataError) as caught:
            from_dict(Prompt, {"id": "a", "messages": messages})
        assert caught.value.code == "data.bad_record"
        assert "`messages" in str(caught.value)
