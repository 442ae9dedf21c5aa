"""Reading rows: every format, the line that each row begins on, and errors of malformed files."""

import gzip
import json

import pytest

from mooring.data.rows import is_data_file, read_rows
from mooring.errors import DataError

ROWS = [{"prompt": "Name a colour.", "completion": "Red, or „Grün“."}, {"prompt": "Count.", "completion": "1\n2\n3"}]


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


CSV = 'prompt,completion\nName a colour.,"Red, or „Grün“."\nCount.,"1\n2\n3"\n'
FORMS = {
    "a.jsonl": as_jsonl(ROWS),
    "a.ndjson": as_jsonl(ROWS),
    "list.json": json.dumps(ROWS),
    "object.json": json.dumps({"canary": "do not train", "n": 2, "examples": ROWS}),
    "lines.json": as_jsonl(ROWS),
    "a.csv": CSV,
    "bom.csv": "\ufeff" + CSV,
    "crlf.csv": CSV.replace("\n", "\r\n").replace("1\r\n2\r\n3", "1\n2\n3"),
    "comment.csv": "# version=1\n# more\n" + CSV,
    "a.tsv": CSV.replace("prompt,", "prompt\t").replace("colour.,", "colour.\t").replace("Count.,", "Count.\t"),
}


@pytest.mark.parametrize("name", [*FORMS, *(f"{name}.gz" for name in FORMS)])
def test_all_text_formats_contain_the_same_rows(tmp_path, name):
    rows = read_rows(write(tmp_path / name, FORMS[name.removesuffix(".gz")]))
    assert [dict(row.values) for row in rows] == ROWS


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    turns = [{"messages": [{"role": "user", "content": "Hi"}], "note": None}]
    parquet.write_table(pa.Table.from_pylist(turns), tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert (row.origin, dict(row.values)) == (f"{tmp_path}/a.parquet:row 1", turns[0])


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", '{"a": 1}\n\n  \n{"a": "x\u2028y"}\n{"a": 3}', ["1", "4", "5"]),
        ("a.csv", 'a,b\n1,2\n\n"x\ny\nz",4\n5,6\n', ["2", "4", "7"]),
        ("c.csv", '# one\n# two\na,b\n"x\r\ny",4\r\n5,6\r\n', ["4", "6"]),
        ("a.json", '[\n{"a": 1},\n{"a": 2}]', ["row 1", "row 2"]),
    ],
)
def test_origin_is_where_the_row_begins(tmp_path, name, text, places):
    path = write(tmp_path / name, text)
    assert [row.origin for row in read_rows(path)] == [f"{path}:{place}" for place in places]


@pytest.mark.parametrize(
    ("name", "text", "place", "code"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2: ", "data.not_json"),
        ("b.jsonl", '{"a": 1}\n\n[1, 2]\n', ":3: ", "data.not_rows"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', ":3: ", "data.not_json"),
        ("b.json", '[{"a": 1}, 5]', ":row 2: ", "data.not_rows"),
        ("c.json", "7", ": ", "data.not_rows"),
        ("d.json", '{"a": [], "b": []}', ": ", "data.not_rows"),
        ("e.json", '{"prompt": "only one"}', ": ", "data.not_rows"),
        ("f.json", '{"a": 1}\n{"a": 2\n', ":2: ", "data.not_json"),
        ("a.csv", 'a,b\n"x\ny",2\n3\n', ":4: ", "data.malformed_row"),
        ("b.csv", "a,b\n1,2,3\n", ":2: ", "data.malformed_row"),
        ("c.csv", 'a,b\n1,2\n"never closed,2\n3,4\n', ":3: ", "data.malformed_row"),
        ("d.csv", "a,a\n1,2\n", ":1: ", "data.duplicate_column"),
        ("e.csv", b"a,b\n1,2\n3,\xff\n", ":3: ", "data.not_utf8"),
        ("f.jsonl.gz", '{"a": 1}\nno\n', ":2: ", "data.not_json"),
        ("a.txt", "hello", ": ", "data.unknown_format"),
        ("a.parquet", b"PAR1 but not really", ": ", "data.bad_parquet"),
    ],
)
def test_malformed_file_names_file_and_line(tmp_path, name, text, place, code):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{path}{place}")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


TRUNCATED = gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9]


@pytest.mark.parametrize("data", [b"not gzip at all", TRUNCATED, b"\x1f\x8b\x08"], ids=["text", "truncated", "header"])
def test_broken_gzip(tmp_path, data):
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "a.jsonl.gz")
    assert caught.value.code == "data.bad_gzip"
    assert "a.jsonl.gz" in caught.value.message


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("b.jsonl", "\n \n"), ("a.json", "[]"), ("b.json", ""), ("a.csv", ""), ("b.csv", "a,b\n")],
)
def test_empty_set(tmp_path, name, text):
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path / name, text))
    assert caught.value.code == "data.empty"


def test_missing_and_folder(tmp_path):
    for path, code in ((tmp_path / "a.jsonl", "data.no_file"), (tmp_path, "data.is_folder")):
        with pytest.raises(DataError) as caught:
            read_rows(path)
        assert caught.value.code == code


def test_is_data_file():
    yes = ["x.jsonl", "a/b.CSV", "x.tsv.gz", "x.parquet", "x.json"]
    no = ["owner/name", "x.gz", "x.parquet.gz", "x.bin", "advbench"]
    assert [is_data_file(name) for name in yes + no] == [True] * len(yes) + [False] * len(no)
