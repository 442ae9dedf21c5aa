"""What others wrote is read in bounded memory and time, or refused."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from fuzzing import limited
from mooring.bounded import (
    CONFIG,
    DATA,
    YAML,
    Limit,
    NotRegularError,
    ShortReads,
    UnusableError,
    YAMLError,
    count_marks,
    expanded_limit,
    parse_json,
    parse_yaml,
    read_bytes,
)

SMALL = Limit(1000, 20)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" + "1," * 20 + "1]", "more than 20 values"),
        ('{"a": "' + "x" * 1000 + '"}', "is larger than"),
        ("[" * 300 + "]" * 300, "more than 20 values"),
        ("1" + "0" * 300, "a number of 301 digits"),
        (b'"\xff"', "is not text in UTF-8"),
    ],
)
def test_json_beyond_a_limit_is_refused(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text, SMALL)


def test_json_within_a_limit_is_read() -> None:
    text = '{"a": [1, 2, {"b": 1.5}]}'
    assert parse_json(text, SMALL) == parse_json(text.encode(), SMALL) == {"a": [1, 2, {"b": 1.5}]}
    assert count_marks(text) == 7
    assert parse_json("9" * 300, SMALL) == int("9" * 300)


def test_json_that_nests_deeply_is_refused_whether_it_can_be_parsed_or_not() -> None:
    for depth in (101, 100_000):
        with pytest.raises(ValueError, match="nests too deeply"):
            parse_json('{"a":' * depth + "1" + "}" * depth, CONFIG)


def lines(count: int, text: str) -> str:
    return "".join(text.format(i=i, before=i - 1) for i in range(1, count))


YAMLS = {
    "references that double": ("a0: &a0 [1, 1]\n" + lines(40, "a{i}: &a{i} [*a{before}, *a{before}]\n"), "more than"),
    "merge keys": (
        "a0: &a0 {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\n" + lines(1000, "a{i}: {{<<: *a0}}\n"),
        "more than",
    ),
    "a list of itself": ("a: &a [*a]\n", "refers to itself"),
    "deep": ("[" * 1000, "not YAML|nests|more than|did not find"),
    "many": ("[" * 60_000, "more than 50,000 values"),
    "a long number": ("a: 1" + "0" * 400 + "\n", "beyond float64"),
    "an object": ("a: !!python/object/apply:os.system [x]\n", "constructor"),
    "large": ("a: " + "x" * 2**18, "is larger than"),
}


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_beyond_a_limit_is_refused_soon(kind: str) -> None:
    text, why = YAMLS[kind]
    with limited(), pytest.raises(YAMLError, match=why):
        parse_yaml(text.encode(), YAML)


def test_only_ordinary_files_of_a_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "good").write_bytes(b"x" * 1000)
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, Path("/proc/self/mem"), Path("/dev/zero")):
        with pytest.raises(NotRegularError):
            read_bytes(path, SMALL)
    with limited(), pytest.raises(UnusableError, match="is larger than"):
        read_bytes(tmp_path / "sparse", SMALL)
    assert len(read_bytes(tmp_path / "good", SMALL)) == 1000


def test_what_a_compressed_file_may_expand_to() -> None:
    assert expanded_limit(0).size == expanded_limit(10**6).size == 2**28
    assert expanded_limit(10**7).size == 10**9
    assert expanded_limit(10**9) == DATA


def test_a_directory_of_an_archive_that_is_too_large_is_refused() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number in range(200):
            archive.writestr(f"{number:0200}", "x")
    assert len(zipfile.ZipFile(ShortReads(made, 2**17)).namelist()) == 200  # type: ignore[arg-type]
    with pytest.raises(UnusableError, match="directory is far too large"):
        zipfile.ZipFile(ShortReads(made, 2**15))  # type: ignore[arg-type]
