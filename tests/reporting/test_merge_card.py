"""The card of a merged model: what the hub reads in it, what people read, and that no name in it does anything."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # comes with rich

from mooring.reporting.model_card import SHOWN, license_of, merge_card


def source(name, kind="checkpoint"):
    return {"name": name, "kind": kind, "digest": f"digest-of-{name}", "files": {"model.safetensors": "0" * 64}}


def record(**changes):
    return {
        "format": 2,
        "method": "linear",
        "lambda": 0.6,
        "options": {"weights": [], "normalize": None, "seed": 42},
        "base": source("base"),
        "tuned": [source("tuned")],
        "tensors": {"all": 12, "changed": 7},
        "decisions": {},
        "notes": [],
        "digest": {"model.safetensors": "ab" * 32},
        "made_with": {"mooring": "0.1.0", "torch": "2.13.0+cpu"},
    } | changes


def make(values=None, **changes):
    given_ = {
        "title": "me/merged",
        "base_ref": "org/Base-1B",
        "tuned_refs": ["me/tuned"],
        "command": "mooring merge org/Base-1B me/tuned --lam 0.6 --out merged",
    } | changes
    return merge_card(values or record(), **given_)


def metadata(text):
    parsed = ModelCard(text)
    assert parsed.text.lstrip().startswith("# ")  # the body begins where the front matter ends
    return parsed.data.to_dict()


def test_what_the_hub_reads():
    assert metadata(make()) == {
        "base_model": ["org/Base-1B", "me/tuned"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mooring", "linear"],
    }


def test_an_adapter_is_linked_with_its_base():
    text = make(adapter=True)
    assert metadata(text) == {
        "base_model": ["org/Base-1B"],
        "base_model_relation": "adapter",
        "library_name": "peft",
        "tags": ["merge", "mooring", "linear", "lora"],
    }
    assert "A LoRA adapter that merges a tuned model with the base" in text


def test_the_base_of_an_adapter_has_no_digest():
    """Its weights are not read: so is the manifest that `as_adapter` writes."""
    text = make(record(kind="lora", base={"name": "base", "kind": "checkpoint"}), adapter=True, base_ref=None)
    assert "- base: `base` (checkpoint)\n- tuned: " in text
    assert "digest `digest-of-tuned`" in text


def test_what_is_local_goes_by_its_name_and_is_no_base_model():
    found = metadata(text := make(base_ref=None, tuned_refs=["/home/me/models/tuned"]))
    assert "base_model" not in found
    assert "base_model_relation" not in found
    assert "- tuned: `tuned` (checkpoint), digest `digest-of-tuned`" in text
    assert "/home" not in text


def test_revisions_are_shown_but_are_no_part_of_an_id():
    text = make(base_ref="org/Base-1B@v2/x", tuned_refs=["org/Base-1B@main"])
    assert metadata(text)["base_model"] == ["org/Base-1B"]
    assert "[`org/Base-1B`](https://huggingface.co/org/Base-1B) at `v2/x`" in text
    assert "mooring safeguard org/Base-1B org/Base-1B --task" in text


def test_several_tuned_models():
    values = record(method="ties", tuned=[source("a"), source("b", "lora")])
    text = make(values, tuned_refs=["me/a", None])
    assert metadata(text)["base_model"] == ["org/Base-1B", "me/a"]
    assert "A merge of 2 tuned models with the base" in text
    assert "- tuned 2: `b` (lora), digest `digest-of-b`" in text
    assert "where δᵢ = tunedᵢ − base" in text


def test_references_must_be_as_many_as_models():
    with pytest.raises(ValueError, match="zip"):
        make(tuned_refs=["me/a", "me/b"])


def test_what_people_read():
    text = make(record(notes=["λ was large"], options={"weights": [0.3, 0.7], "rescale": None, "density": []}))
    assert "**λ = 0.6** (λ is the weight of the tuned model: 0 is the base, 1 the tuned model)" in text
    assert "`linear`, θ = (1−λ)·base" in text
    assert "7 of 12 tensors" in text
    assert "mooring `0.1.0`, torch `2.13.0+cpu`" in text
    assert '{\n  "weights": [\n' in text
    assert "rescale" not in text
    assert "density" not in text
    assert "\nmooring merge org/Base-1B me/tuned --lam 0.6 --out merged\n" in text
    assert f"\nmodel.safetensors: {'ab' * 32}\n" in text
    assert "λ was large" in text


def test_it_says_what_was_not_measured_and_how_to_measure_it():
    text = make()
    assert "## Not measured" in text
    assert "Neither the safety of this model nor the quality of its answers was measured" in text
    assert "mooring safeguard org/Base-1B me/tuned --task task.jsonl --out runs/check" in text


@pytest.mark.parametrize(
    ("lam", "words"),
    [
        (1, "**λ = 1** ("),
        ([0.2, 0.8], "**λ = 0.2 … 0.8**, from the first layer to the last"),
        ({"layers.{0-9}.mlp.*": 0.3, "*": [0.5, 1]}, '`{"layers.{0-9}.mlp.*": 0.3, "*": [0.5, 1]}`'),
    ],
)
def test_every_form_of_lambda(lam, words):
    assert words in make(record(**{"lambda": lam}))


def test_a_long_list_of_decisions_is_counted_and_cut():
    decisions = {f"model.layers.{n}.x": "copied from the base" for n in range(500)}
    text = make(record(decisions=decisions))
    assert "Decisions (500):" in text
    assert "model.layers.0.x: copied from the base" in text
    assert f"and {500 - SHOWN} more in mooring.json" in text
    assert len(text) < 6000
    assert "## Decided" not in make()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("mooring merge /home/me/base ~/t/tuned/ --out=../x/merged", "mooring merge base tuned --out=merged"),
        ("mooring merge 'C:\\Users\\me\\base' a/b/c --lam .5", "mooring merge base c --lam .5"),
        ("mooring merge org/base runs/tuned --lam 'layers.*=0.2..0.8'", None),
    ],
)
def test_paths_of_a_command_are_cut_to_their_last_part(command, shown):
    assert f"\n{shown or command}\n```" in make(command=command)


def test_without_a_command_or_with_one_that_cannot_be_read():
    for command in (None, "", "mooring merge 'open /home/me"):
        text = make(command=command)
        assert "mooring merge" not in text
        assert "mooring.json" in text


HOSTILE = [
    "````",
    "x\n---\nlicense: mit\n---\n# owned",
    "`` ` ``` \n```\n</code><script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](https://evil.example/x.png) <img src=x>",
    "https://evil.example www.evil.example @someone me@evil.example #1 $x$ | a | b",
    "\u202egnp.exe \u200b\x1b[31m \x00 \ud800",
    "- !!python/object/apply:os.system ['true']: {a: b}",
]
ELEMENTS = {"<h1>", "<h2>", "<p>", "<ul>", "<li>", "<pre>", "<code>", "<strong>"}
CODE_BLOCK = re.compile(r"^(?P<fence>`{3,})\w*\n.*?\n(?P=fence)$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)")
OWN_LINK = re.compile(r"\]\(https://huggingface\.co/[\w./-]+\)")


def bare(text):
    """A card's body without code, escapes and its own links: what Markdown could act on."""
    body = ModelCard(text).text
    for pattern in (CODE_BLOCK, re.compile(r"\\[^\w\s]"), CODE_SPAN, OWN_LINK):
        body = pattern.sub("", body)
    return body


def tags(text):
    """The HTML elements that a card becomes, with their attributes."""
    html = MarkdownIt("commonmark", {"html": True}).render(ModelCard(text).text)
    return {re.sub(r' class="language-\w+"', "", tag) for tag in re.findall("<[^/].*?>", html)}


def everywhere(text):
    """A card with some text in every place that inputs reach."""
    hostile = {"name": text, "kind": text, "digest": text}
    values = record(
        method=text,
        base=hostile,
        tuned=[hostile],
        decisions={text: text},
        notes=[text],
        digest={text: text},
        made_with={text: text},
        options={text: text},
        **{"lambda": {text: 0.5}},
    )
    return make(values, title=text, base_ref=text, tuned_refs=[text], command=text, terms={"license": "mit"})


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_do_nothing(text):
    made = everywhere(text)
    made.encode("utf-8")
    found = metadata(made)
    assert set(found) == {"license", "library_name", "tags"}
    assert tags(made) == ELEMENTS
    left = bare(made)
    for mark in ("<", "](", "![", "://", "www.", "@", "`", "$", "|"):
        assert mark not in left.replace("**", ""), mark
    assert [line for line in left.split("\n") if line.startswith("#")][1:] == [
        "## Made from",
        "## How",
        "## Decided",
        "## Digests of this model",
        "## Not measured",
        "## License",
    ]
    assert not re.search(r"[\u202e\u200b\x00\x1b\ud800]", made)


@given(st.text(max_size=30))
def test_any_text_leaves_the_front_matter_readable_and_the_ids_valid(text):
    found = metadata(made := everywhere(text))
    links = {tag for tag in tags(made) if tag.startswith('<a href="https://huggingface.co/')}
    assert tags(made) - links == ELEMENTS
    assert set(found) <= {"base_model", "base_model_relation", "license", "library_name", "tags"}
    assert found["tags"][:2] == ["merge", "mooring"]
    for name in found.get("base_model", ()):
        assert name == text.partition("@")[0]


@pytest.mark.parametrize(
    "ref", ["a--b/c", "a/b.git", "a/b..c", "a/b-", "a.", "../x", "a/b/c", "ü/x", "a/b@", "a/b@c d", "x" * 97]
)
def test_what_the_hub_refuses_as_an_id_is_no_base_model(ref):
    assert "base_model" not in metadata(make(base_ref=ref, tuned_refs=[ref]))
    for good in ("gpt2", "a/b", "Org-1/Model_2.5-x"):
        validate_repo_id(good)
        assert metadata(make(base_ref=good))["base_model"][0] == good


def write(folder, front):
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Base\n", encoding="utf-8")
    return license_of(folder)


def test_the_license_of_the_base(tmp_path):
    assert license_of(tmp_path) == {}
    assert write(tmp_path, "license: apache-2.0\ntags: [x]") == {"license": "apache-2.0"}
    link = "https://huggingface.co/org/Base/blob/main/LICENSE"
    terms = write(tmp_path, f"license: other\nlicense_name: llama3.1\nlicense_link: {link}")
    assert terms == {"license": "other", "license_name": "llama3.1", "license_link": link}
    text = make(terms=terms)
    assert metadata(text).items() >= terms.items()
    assert "The tuned models may bring terms of their own" in text
    assert "License" not in make()
    assert write(tmp_path, "license: other\nlicense_name: x\nlicense_link: LICENSE") == {
        "license": "other",
        "license_name": "x",
    }


@pytest.mark.parametrize(
    "front",
    [
        "license: [mit, apache-2.0]",
        "license: 3",
        "license: 'MIT <b>'",
        "license: other\nlicense_name: '[x](y)'",
        "license_name: x",
        "tags: [x]",
        "- a list",
        "license: [",
        "license: !!python/object/apply:os.system ['true']",
        "[" * 5000,
    ],
)
def test_a_license_that_cannot_be_read_is_left_out(tmp_path, front):
    assert write(tmp_path, front) == {}


def test_a_card_without_front_matter_or_not_in_text(tmp_path):
    (tmp_path / "README.md").write_text("# Base\nlicense: mit\n")
    assert license_of(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\xff\n---\n")
    assert license_of(tmp_path) == {}
    assert yaml.safe_load("license: mit") == {"license": "mit"}
