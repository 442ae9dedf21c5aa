"""The page: untrusted text does nothing in it, and it needs nothing from outside."""

import base64
import dataclasses
import hashlib
import html
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import VERDICT, results, trials

from mooring.merge_point import MergePoint
from mooring.printable import visible
from mooring.records import Choice, Decision
from mooring.reporting.page import as_html, as_markdown
from mooring.reporting.results import Results, load
from mooring.reporting.tables import category_table
from mooring.reporting.write import write

HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></details></details></section></main><h1>All is well</h1>",
    "<img src=x onerror=alert(1)>",
    "<!-- <style>*{display:none}</style>",
    "]]><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62;",
    "{{ results.title }} {% raw %} {# #}",
    "<meta http-equiv=refresh content=0;url=https://example.org>",
    "<plaintext>",
    "</title><base href=https://example.org>",
    "\x00\x08\x1b[31m\x7f\x9b31m",
    "\u202egnp.exe\u202c \u2066x\u2069 \u200b\u200d\ufeff\u00ad",
    "\ud800 lone \udfff",
    "\U000e0041\U000e0042 \ue000 \ufffe \u2028\u2029",
    "```\n# heading\n| a | b |",
    "\r\rback",
]


class Elements(HTMLParser):
    """Tags with their attributes' names, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.seen.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.seen.append(("comment", (data,)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def filled(text: str) -> Results:
    """The sample with a text wherever one comes from a model, a data set or a user."""
    made = results(text, title=text, notes=[text], judges=[text], versions={text: text}, recipe={"name": text})
    rows = [dataclasses.replace(row, id=text, category=text) for row in made.rows]
    answers = {"0": dataclasses.replace(rows[0].answers["0"], verdict=text, judges={text: text})}
    return dataclasses.replace(
        made,
        rows=[dataclasses.replace(rows[0], answers=answers), *rows[1:]],
        models={"base": {"source": text}},
        curves={text: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]},
        choice=dataclasses.replace(made.choice, reason=text),
    )


@pytest.fixture(scope="module")
def plain() -> list[tuple[str, tuple[str, ...]]]:
    return Elements(as_html(filled("harmless"))).seen


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_adds_no_element(text: str, plain: list[tuple[str, tuple[str, ...]]]) -> None:
    page = as_html(filled(text))
    elements = Elements(page)
    assert elements.seen == plain
    assert visible(text).strip() in "".join(elements.text)
    page.encode("utf-8")


@given(text=st.text(st.characters(codec=None)))
def test_no_character_of_any_text_acts_unseen(text: str) -> None:
    shown = visible(text)
    assert not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for c in shown if c not in "\n\t"
    )
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]", shown
    )


def test_visible_leaves_plain_text_alone() -> None:
    for text in ("tab\tand\nline", "naïve – “quoted” λ", "日本語 العربية 😀"):
        assert visible(text) == text
    assert visible("a\u202eb\x1b") == "a⟨U+202E⟩b⟨U+001B⟩"
    assert visible("a\r\nb\rc") == "a\nb⟨U+000D⟩c"


def test_the_page_needs_nothing_from_outside_and_runs_one_script_known_by_its_hash() -> None:
    page = as_html(filled("</script><script>alert(1)</script>"))
    assert "http:" not in page
    assert "https:" not in page
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert (len(scripts), len(styles)) == (1, 1)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = [rule.split() for rule in html.unescape(policy[1]).split("; ")]
    assert rules == [
        ["default-src", "'none'"],
        ["script-src", digest(scripts[0])],
        ["style-src-elem", digest(styles[0])],
        ["style-src-attr", "'unsafe-inline'"],
        ["base-uri", "'none'"],
        ["form-action", "'none'"],
    ]
    elements = Elements(page)
    tags = [tag for tag, _ in elements.seen]
    assert not set(tags) & {"link", "iframe", "object", "embed", "img", "form", "base"}
    assert tags.count("script") == 2
    assert not {name for _, names in elements.seen for name in names if name.startswith("on")}
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval|Function", scripts[0])


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_ids_are_unique_and_references_resolve() -> None:
    page = as_html(results())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^)"]+)', page)
    assert wanted
    assert set(wanted) <= set(ids)


def test_it_says_what_a_reader_needs_first() -> None:
    page = as_html(results())
    text = "".join(Elements(page).text)
    order = ["Ship", *VERDICT.caveats, "λ is the weight of the tuned model", "53.9 % [42.2, 65.6]", "74 %"]
    places = [text.index(part) for part in (*order, *(f"{check.sentence}\n" for check in VERDICT.checks))]
    assert places == sorted(places)
    assert places[-1] < text.index(results().choice.reason)
    assert VERDICT.sentence in text.replace("\u00a0%", " %")
    for part in (*results().notes, "validation split", "fraud", "0 / 3", "a" * 64, "bundled:smollm2", "held out"):
        assert part in text


@pytest.mark.parametrize(
    ("decision", "words"), [("do_not_ship", "Do not ship"), ("not_enough_evidence", "Not enough evidence")]
)
def test_the_decision_is_said_in_both(decision: Decision, words: str) -> None:
    found = results(verdict=dataclasses.replace(VERDICT, decision=decision))
    assert f'<div class="verdict {decision}">\n<p class="decision">{words}</p>' in as_html(found)
    assert as_markdown(found).partition("\n\n")[2].startswith(f"**{words}.** {VERDICT.sentence}")


def test_what_models_said_is_in_the_data_alone() -> None:
    page = as_html(results("harmful text here"))
    assert "harmful text here" in page
    before, _, after = page.partition('<script type="application/json" id="data">')
    assert "harmful text here" not in before
    assert "harmful text here" not in after.partition("</script>")[2]


def test_a_redacted_report_holds_no_harmful_text_and_says_so(tmp_path: Path) -> None:
    rows = [*results("harmful text here").rows[:6], *results("call me").rows[6:]]
    rows[1] = dataclasses.replace(rows[1], id="harmful text here, 1")
    agreement = [dataclasses.replace(results().agreement[0], disagreements=["h0", rows[1].id])]
    write(results(rows=rows, agreement=agreement), tmp_path / "whole")
    write(results(rows=rows, agreement=agreement), tmp_path / "redacted", redact=True)
    assert "harmful text here" in (tmp_path / "whole" / "index.html").read_text()
    for path in (tmp_path / "redacted").iterdir():
        assert b"harmful text here" not in path.read_bytes(), path.name
    page = (tmp_path / "redacted" / "index.html").read_text()
    assert "leaves them out altogether" in page
    assert "leaves them out altogether" not in (tmp_path / "whole" / "index.html").read_text()
    assert "call me" in page
    found = load(tmp_path / "redacted")
    assert found.redacted
    assert list(found.agreement[0].disagreements) == [
        row.id for row in found.rows[:2]
    ]  # a prompt is still known as one
    assert [row.answers["1"].verdict for row in found.rows] == [row.answers["1"].verdict for row in rows]
    assert category_table(found) == category_table(results(rows=rows))


def test_the_heat_map_has_a_cell_a_layer_and_module() -> None:
    page = as_html(results())
    cells = re.findall(r'<td class="h(\d)" title="([^"]*)">', page)
    assert cells == [
        ("1", "mlp.up_proj, layer 0: 0.2 %"),
        ("9", "mlp.up_proj, layer 1: 2 %"),
        ("0", "input_layernorm, layer 0: 0 %"),
        ("0", "input_layernorm, layer 1: –"),
    ]
    assert "from 0.2 % to 2 %. Most: mlp.up_proj of layer 1, 2 %." in page
    assert "Outside the layers: lm_head 0.1 %." in page
    assert "What tuning changed" not in as_html(results(changes=None))


def test_categories_have_bars() -> None:
    page = as_html(results())
    assert re.findall(r'<rect width="([\d.]+)"', page) == ["0.0", "100.0"] * 2


def test_the_bare_minimum_makes_a_page_without_empty_sections() -> None:
    choice = Choice(point=MergePoint(0.4), within=True, bound=0.1, metric="lam", reason="So.")
    few = [dataclasses.replace(t, scores={"asr": t.scores["asr"]}) for t in trials() if t.split == "validation"]
    bare = Results(verdict=VERDICT, title="t", recipe={}, models={}, trials=few, choice=choice, judges=["rules"])
    page, whole = as_html(bare), as_html(results())
    for heading in ("Tuning", "By category", "Every prompt and answer", "What to know of these numbers"):
        assert heading in whole
        assert heading not in page
    assert as_markdown(bare).startswith("# t\n")


def test_markdown_says_where_tuning_changed_most() -> None:
    text = as_markdown(results())
    assert "| mlp.up\\_proj | 2 % | 1 | 0.2 % |" in text
    assert "| 1 | 2 % | mlp.up\\_proj | 2 % |" in text
    assert text.index("| 1 | 2 %") < text.index("| 0 | 0.2 %")
    assert "What tuning changed" not in as_markdown(results(changes=None))


def test_markdown_holds_the_numbers_and_no_markup_of_others() -> None:
    text = as_markdown(results())
    assert "| attack success rate ↓ | 2.4 % \\[0.0, 6.0\\] | 53.9 % \\[42.2, 65.6\\] |" in text
    assert "![" in text
    for hostile in HOSTILE:
        body, _, recipe = as_markdown(filled(hostile)).rpartition("yaml\n")
        assert not re.search(r"(?<!\\)<", body)
        assert not re.search(r"^# heading", body, re.MULTILINE)
        assert recipe.count("\n```") >= 1
        body.encode("utf-8")


FILES = ["index.html", "report.md", "results.json", "tradeoff.png", "tradeoff.svg"]


def test_the_same_results_give_the_same_bytes_and_a_rebuilt_report_too(tmp_path: Path) -> None:
    page = write(results(), tmp_path / "one")
    assert page == tmp_path / "one" / "index.html"
    write(results(), tmp_path / "two")
    write(load(tmp_path / "one"), tmp_path / "three")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == FILES
    for name in FILES:
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "two" / name).read_bytes(), name
        assert first == (tmp_path / "three" / name).read_bytes(), name
        assert str(tmp_path).encode() not in first
    assert (tmp_path / "one/tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(rb"20\d\d-\d\d-\d\d", (tmp_path / "one/tradeoff.svg").read_bytes())
