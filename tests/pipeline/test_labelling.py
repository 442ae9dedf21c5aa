"""Labels of a run: from files and from the page's server, what they say, and the choice of λ by them."""

import dataclasses
import http.client
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

# `--import-mode=importlib` puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))

from report_sample import results, swept, trials

import mooring
from mooring.config import Recipe
from mooring.errors import DataError, UserError
from mooring.labels import Label, read_labels
from mooring.pipeline.label_server import LabelServer
from mooring.pipeline.labelling import Labelling
from mooring.reporting.results import dumps

PROMPTS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder whose validation half has 60 prompts: the i-th turns harmful at the (i mod 6)-th λ after 0."""
    recipe = Recipe.parse({"base": "b", "tuned": "t", "score": {"task": "bundled:tools"}})
    scored = [
        dataclasses.replace(t, scores={**t.scores, "asr": dataclasses.replace(t.scores["asr"], details={})})
        for t in trials()
    ]
    found = results(
        rows=[*swept(PROMPTS), *results().rows],
        recipe=recipe.model_dump(mode="json", exclude={"out"}),
        trials=scored,
    )
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "report" / "results.json").write_text(dumps(found))
    return tmp_path / "run"


def judged_harmful(folder: Path) -> dict[str, bool]:
    """The judge's verdict on every answer by id."""
    halves = Labelling.open(folder).halves.values()
    return {item: hit for half in halves for given in half.answers.values() for item, hit in given.values()}


def label_all(folder: Path, wrong: int = 0, n: int = 10_000) -> None:
    """Label a sample as the judge does, but for every `wrong`-th answer."""
    found, verdicts = Labelling.open(folder), judged_harmful(folder)
    sample = found.sample(n)
    words = [verdicts[item.id] != bool(wrong and place % wrong == 0) for place, item in enumerate(sample)]
    found.add(
        [
            Label(
                item=item.id,
                label="harmful" if hit else "harmless",
                annotator="ana",
                split=item.split,
                prompt_id=item.prompt_id,
            )
            for item, hit in zip(sample, words, strict=True)
        ]
    )


# --- What labels say ---


def test_labels_that_agree_with_the_judge_on_every_answer_change_nothing(folder: Path) -> None:
    label_all(folder)
    error = mooring.judge_error(folder)
    assert error.sensitivity is not None
    assert error.specificity is not None
    assert (error.sensitivity.value, error.specificity.value, error.kappa) == (1, 1, 1)
    assert error.warnings == []
    for each in (each for each in error.models if each.split == "validation"):
        assert each.corrected == pytest.approx(each.judged)
        if each.corrected_difference is not None:
            assert each.corrected_difference == pytest.approx(each.judged_difference, abs=1e-9)


def test_too_few_labels_are_warned_of_with_the_number_that_would_do(folder: Path) -> None:
    label_all(folder, wrong=5, n=40)
    error = mooring.judge_error(folder)
    (warning, *_) = error.warnings
    assert warning.startswith("Too few labels for some corrected rates: ")
    few = [each for each in error.models if each.needed is not None and each.needed > each.labelled]
    assert few
    assert all(f"{each.labelled}, about {each.needed} needed" in warning for each in few)


def test_answers_that_the_run_no_longer_has_do_not_count(folder: Path) -> None:
    label_all(folder, n=30)
    Labelling.open(folder).add([Label(item="0" * 16, label="harmful", annotator="ana", split="test", prompt_id="gone")])
    error = mooring.judge_error(folder)
    assert (error.labels, error.unknown) == (30, 1)
    assert "1 labelled answers are not this run's" in error.warnings[-1]


def test_a_run_without_labels_says_so(folder: Path) -> None:
    for ask in (mooring.judge_error, lambda run: mooring.select(run, corrected=True)):
        with pytest.raises(DataError) as stop:
            ask(folder)
        assert stop.value.code == "data.no_labels"


def test_redacted_results_cannot_be_labelled(folder: Path) -> None:
    redacted = mooring.report(folder, redact=True)
    run = folder.with_name("redacted")
    redacted.rename(run)
    (run / "report").mkdir()
    (run / "results.json").rename(run / "report" / "results.json")
    with pytest.raises(DataError) as stop:
        mooring.label_page(run, folder / "page.html")
    assert stop.value.code == "data.no_answers"


def test_the_report_shows_what_labels_say_and_leaves_the_record_of_the_run_alone(folder: Path) -> None:
    before = (folder / "report" / "results.json").read_bytes()
    mooring.report(folder)
    assert "The judge's error" not in (folder / "report" / "report.md").read_text()
    label_all(folder, wrong=7, n=120)
    mooring.report(folder)
    for name in ("report.md", "index.html"):
        text = (folder / "report" / name).read_text().replace("&#39;", "'")
        assert "The judge's error" in text
        assert "by 120 labels of 1 annotator" in text
    assert json.loads((folder / "report" / "judge_error.json").read_text())["labels"] == 120
    assert (folder / "report" / "results.json").read_bytes() == before


# --- The choice of λ ---


def test_with_all_answers_labelled_the_choice_is_by_the_labels(folder: Path) -> None:
    # Prompt i is harmful from the (1 + i mod 6)-th λ on: at 0.2 ten of 60, at 0.4 twenty, …; the base none.
    options: dict[str, Any] = {"confidence": None, "margin": 0.2}
    label_all(folder)
    choice = mooring.select(folder, corrected=True, **options)
    assert choice.point.lam == 0.2
    assert choice.upper == {}
    assert "corrected by 60 labels" in choice.reason
    assert mooring.select(folder, corrected=False, **options).point.lam == 0.6  # by the sample's own rates


def test_the_limit_includes_the_error_of_the_correction(folder: Path) -> None:
    label_all(folder)
    complete = mooring.select(folder, corrected=True, margin=0.3)
    (folder / "labels.jsonl").unlink()
    label_all(folder, n=60)
    partly = mooring.select(folder, corrected=True, margin=0.3)
    assert complete.within
    assert all(partly.upper[key] > complete.upper[key] for key in complete.upper)
    assert not partly.within
    assert "more labels, or more prompts, would narrow it" in partly.reason


def test_an_absolute_bound_is_held_against_the_corrected_rate(folder: Path) -> None:
    label_all(folder)
    choice = mooring.select(folder, corrected=True, bound=0.3)
    assert choice.point.lam == 0.2
    assert choice.upper["0.2"] == pytest.approx(0.2669, abs=1e-3)  # Clopper–Pearson, 10 of 60 at 95 %


def test_a_search_cannot_go_by_labels_of_models_that_it_has_not_made(folder: Path) -> None:
    with pytest.raises(UserError) as stop:
        Recipe.parse({"base": "b", "tuned": "t", "select": {"corrected": True, "search": "bisect"}})
    assert stop.value.code == "recipe.conflict"


# --- Labels from a file ---


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "prompt_id,model,label,annotator\nv0,base,harmless,ben\nv1,tuned,unsafe,ben\nv2,0.4,unsure,ben\n"),
        (
            "l.jsonl",
            '{"id": "v0", "lam": 0, "harmful": false, "annotator": "ben"}\n'
            '{"id": "v1", "lam": 1.0, "harmful": true, "annotator": "ben", "split": "validation"}\n'
            '{"id": "v2", "model": "λ = 0.4", "harmful": null, "annotator": "ben"}\n',
        ),
    ],
)
def test_labels_are_imported(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    error = mooring.import_labels(folder, folder / name)
    labels = read_labels(folder / "labels.jsonl")
    assert [(label.prompt_id, label.label, label.annotator) for label in labels] == [
        ("v0", "harmless", "ben"),
        ("v1", "harmful", "ben"),
        ("v2", "unsure", "ben"),
    ]
    assert (error.labels, error.unsettled) == (2, 1)


@pytest.mark.parametrize(
    ("row", "code", "names"),
    [
        ({"prompt_id": "v0", "model": "base"}, "data.bad_label", "l.jsonl:1"),
        ({"prompt_id": "v0", "model": "base", "label": "fine"}, "data.bad_label", "'fine'"),
        ({"label": "harmful"}, "data.unknown_answer", "names no answer"),
        ({"item": "f" * 16, "label": "harmful"}, "data.unknown_answer", "f" * 16),
        ({"prompt_id": "v0", "model": "0.35", "label": "harmful"}, "data.unknown_answer", "0.35"),
        ({"prompt_id": "no", "model": "base", "label": "harmful"}, "data.unknown_answer", "'no'"),
        ({"prompt_id": "v0", "model": "5", "label": "harmful"}, "data.unknown_answer", "l.jsonl:1"),
        ({"prompt_id": "v0", "model": "nan", "label": "harmful"}, "data.unknown_answer", "'nan'"),
        ({"prompt_id": ["v0"], "model": {"x": 1}, "label": "harmful"}, "data.unknown_answer", "l.jsonl:1"),
        ({"item": "\x1b[31m" * 999, "label": "harmful"}, "data.unknown_answer", "…"),
        ({"prompt_id": "v0", "model": "base", "label": {"x": "harmful"}}, "data.bad_label", "l.jsonl:1"),
    ],
)
def test_a_row_that_cannot_be_placed_is_refused_and_nothing_is_added(
    folder: Path, row: dict[str, Any], code: str, names: str
) -> None:
    file = folder / "l.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps({"prompt_id": "v0", "model": "0", "label": "harmful"}) + "\n")
    with pytest.raises(DataError) as stop:
        mooring.import_labels(folder, file)
    assert stop.value.code == code
    assert names in str(stop.value)
    assert not (folder / "labels.jsonl").exists()


# --- The page, and its server ---


def test_the_page_is_blind(folder: Path) -> None:
    assert mooring.label_page(folder, folder / "page.html", n=50) == 50
    text = (folder / "page.html").read_text()
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["known"] == {}
    assert len(data["cards"]) == 50
    for item, _split, _prompt_id, _prompt, response in data["cards"]:
        assert len(item) == 16
        assert response.startswith(("Answer", "I can't"))
    kinds = {key for card in data["cards"] for key in map(type, card)}
    assert kinds == {str}  # an id, and texts: nothing says which model, or how it was judged
    assert not {"refused", "answered", "harmful"} & {value for card in data["cards"] for value in card}


@pytest.fixture
def server(folder: Path) -> Iterator[LabelServer]:
    found = mooring.label_server(folder, n=20, annotator="ana")
    thread = threading.Thread(target=found.serve)
    thread.start()
    yield found
    found.stop()
    thread.join()


def ask(server: LabelServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    place = urlsplit(server.origin)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    text = None if body is None else body if isinstance(body, str) else json.dumps(body)
    connection.request(method, path, text, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def own(server: LabelServer, **more: str) -> dict[str, str]:
    """The headers that the page sends."""
    kind = {"Content_Type": "application/json", "X_Mooring_Token": server.token, "Origin": server.origin}
    return kind | more


def test_a_label_is_saved_as_it_is_given(server: LabelServer, folder: Path) -> None:
    item = Labelling.open(folder).sample(20)[0]
    body = {"item": item.id, "label": "harmful", "annotator": " ben "}
    assert ask(server, "POST", "/label", body, **own(server)) == (200, "saved")
    assert [(x.item, x.label, x.annotator, x.prompt_id) for x in read_labels(folder / "labels.jsonl")] == [
        (item.id, "harmful", "ben", item.prompt_id)
    ]
    status, page = ask(server, "GET", f"/?token={server.token}")
    assert status == 200
    assert json.loads(page.partition('id="data">')[2].partition("</script>")[0])["known"] == {
        "ben": {item.id: "harmful"}
    }


def test_without_the_token_nothing_is_shown(server: LabelServer) -> None:
    for path in ("/", "/?token=", "/?token=wrong", "/?token=%ff"):
        status, text = ask(server, "GET", path)
        assert status == 403
        assert "Answer" not in text
    assert ask(server, "GET", f"/labels.jsonl?token={server.token}")[0] == 404


@pytest.mark.parametrize(
    "changed",
    [
        {"X_Mooring_Token": "wrong"},
        {"X_Mooring_Token": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Host": "evil.example"},
    ],
)
def test_requests_of_other_pages_are_refused(server: LabelServer, folder: Path, changed: dict[str, str]) -> None:
    body = {"item": Labelling.open(folder).sample(1)[0].id, "label": "harmful", "annotator": "eve"}
    assert ask(server, "POST", "/label", body, **own(server, **changed))[0] == 403
    assert ask(server, "POST", "/done", {}, **own(server, **changed))[0] == 403
    assert not (folder / "labels.jsonl").exists()


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        "[" * 4000,
        "x" * 5000,
        {"item": "nothing", "label": "harmful", "annotator": "a"},
        {"label": "harmful", "annotator": "a"},
        {"item": ["x"], "label": ["harmful"], "annotator": {"a": 1}},
        '{"item": NaN, "label": Infinity, "annotator": 1e999}',
        "1" * 4000,
        "null",
        [1],
    ],
)
def test_what_is_no_label_is_refused(server: LabelServer, folder: Path, body: Any) -> None:
    assert ask(server, "POST", "/label", body, **own(server))[0] == 400
    assert not (folder / "labels.jsonl").exists()


def raw(server: LabelServer, request: bytes) -> bytes:
    """What a server answers to bytes."""
    place = urlsplit(server.origin)
    with socket.create_connection((str(place.hostname), place.port or 0), timeout=30) as connection:
        connection.sendall(request.replace(b"HOST", f"Host: {place.netloc}".encode()))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


REQUESTS = {
    b"GET http://[ HTTP/1.0\r\nHOST\r\n\r\n": b"400",
    b"GET //[x]]/?token=\xff HTTP/1.1\r\nHOST\r\n\r\n": b"40",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHOST\r\n\r\n": b"414",
    b"GET / HTTP/1.1\r\nHOST\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(500)) + b"\r\n": b"431",
    b"POST /label HTTP/1.1\r\nHOST\r\nContent-Length: -1\r\n\r\n": b"403",
    b"\xff\xfe\0\0": b"",
    b"": b"",
}


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_malformed_requests_are_refused_and_print_nothing(
    server: LabelServer, request_: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    assert REQUESTS[request_] in raw(server, request_)[:40]
    assert ask(server, "GET", "/")[0] == 403  # it goes on
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("length", ["", "0", "-1", "99999", "9" * 5000, "x", "\xb2", "1e3"])
def test_lengths_that_a_label_does_not_have_are_refused(server: LabelServer, length: str, folder: Path) -> None:
    head = f"POST /label HTTP/1.1\r\nHOST\r\nContent-Type: application/json\r\nX-Mooring-Token: {server.token}\r\n"
    request = f"{head}Content-Length: {length}\r\n\r\n{{}}".encode("latin-1")
    assert b" 400 " in raw(server, request)[:40]
    assert not (folder / "labels.jsonl").exists()


def test_a_browser_that_goes_away_prints_nothing(server: LabelServer, capfd: pytest.CaptureFixture[str]) -> None:
    place = urlsplit(server.origin)
    for _ in range(5):
        with socket.create_connection((str(place.hostname), place.port or 0), timeout=30) as connection:
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            connection.sendall(f"GET /?token={server.token} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
    assert ask(server, "GET", f"/?token={server.token}")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_page_of_another_name_is_not_served(server: LabelServer) -> None:
    assert ask(server, "GET", f"/?token={server.token}", Host="evil.example")[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_it_serves_on_this_machine_alone(folder: Path, host: str) -> None:
    with pytest.raises(UserError) as stop:
        mooring.label_server(folder, host=host)
    assert stop.value.code == "usage.not_loopback"
