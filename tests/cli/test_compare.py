"""`mooring compare`: the answers to a prompt at every λ, on the terminal and as JSON."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mooring.cli.compare import Command, answered, interact, read_command
from mooring.errors import DataError
from mooring.events import Event
from mooring.merge_point import BASE, TUNED, MergePoint
from mooring.pipeline.compare import Comparison, Reply
from mooring.records import Completion, Message, Prompt

from .conftest import Run, check_refused, write_task  # type: ignore[import-not-found]

ASK = ("--prompt", "What is the capital of Norway?", "--max-tokens", 6)
PROMPT = Prompt(id="p", messages=(Message("user", "What?"),))


def reply(text: str = "Oslo.", lam: float | None = 0.5, finish: str = "stop") -> Reply:
    return Reply(point=None if lam is None else MergePoint(lam), text=text, tokens=4, finish=finish)


def shown(replies: Sequence[Reply], width: int = 120) -> str:
    """What a terminal with colours is sent."""
    out = Console(width=width, file=io.StringIO(), force_terminal=True, highlight=False, markup=False, emoji=False)
    out.print(answered(PROMPT, replies, width))
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def answers(run: Run, *args: object) -> list[dict[str, Any]]:
    code, out, err = run("compare", *args, "--json")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def test_each_answer_is_that_of_the_model_that_merge_writes(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path
) -> None:
    (compared,) = answers(run, tiny_model_folder, tuned, *ASK, "--lambdas", "0.7,0.3", "--dtype", "float32")
    found = {each["model"]: each["text"] for each in compared["answers"]}
    assert list(found) == ["base", "λ = 0.3", "λ = 0.7", "tuned"]
    (tmp_path / "ask.jsonl").write_text(json.dumps({"prompt": ASK[1]}) + "\n")
    for name, lam in (("base", None), ("λ = 0.3", 0.3), ("λ = 0.7", 0.7), ("tuned", 1)):
        model: Path | str = tiny_model_folder
        if lam is not None:
            model = f"m-{lam}"
            assert run("merge", tiny_model_folder, tuned, "--lam", lam, "--out", model)[0] == 0
        asked = ("--max-tokens", 6, "--dtype", "float32", "--out", f"{name}.jsonl")
        code, _, err = run("generate", model, "ask.jsonl", *asked)
        assert code == 0, err
        assert json.loads((tmp_path / f"{name}.jsonl").read_text())["text"] == found[name]
    assert len(set(found.values())) > 2  # or the above says little


def test_a_third_model_stands_beside_them(run: Run, tiny_model_folder: Path, tuned: Path) -> None:
    (compared,) = answers(run, tiny_model_folder, tuned, tuned, *ASK, "--lambdas", "0.5")
    by = {each["model"]: each for each in compared["answers"]}
    assert by["merged"]["lam"] is None
    assert by["merged"]["text"] == by["tuned"]["text"]


def test_prompts_of_a_data_set_and_another_method(
    run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path
) -> None:
    task = write_task(tmp_path)
    options = ("--prompts", f"{task}#2", "--lambdas", "0.5", "--max-tokens", 4)
    found = answers(run, tiny_model_folder, tuned, *options, "--method", "dare_linear", "--density", 0.5)
    assert len(found) == 2
    assert {each["prompt"] for each in found} <= {f"Set the alarm to {i}." for i in range(6)}
    assert all(len(each["answers"]) == 3 for each in found)


def test_without_a_terminal_the_command_prints_all_and_ends(
    run: Run, tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, out, err = run("compare", tiny_model_folder, tuned, *ASK, "--lambdas", "0.5")
    assert (code, err) == (0, "")
    places = [out.index(head) for head in ("What is the capital", "base (λ = 0)", "λ = 0.5", "tuned (λ = 1)")]
    assert places == sorted(places)
    assert "q: quit" not in out


def test_answers_are_side_by_side_if_the_terminal_is_wide_enough() -> None:
    replies = [reply("first " * 9, 0.0), reply("second " * 9), reply("third " * 9, 1.0), reply("fourth", None)]
    wide, narrow = shown(replies, 140), shown(replies, 80)
    line = next(line for line in wide.splitlines() if "first" in line)
    assert all(word in line for word in ("second", "third", "fourth"))
    assert all(head in wide for head in ("base (λ = 0)", "λ = 0.5", "tuned (λ = 1)", "merged (as given)"))
    assert not any("first" in line and "second" in line for line in narrow.splitlines())
    assert narrow.index("first") < narrow.index("second") < narrow.index("third") < narrow.index("fourth")
    assert "(cut at 4 tokens)" in shown([reply(finish="length")])
    assert "(nothing)" in shown([reply("  ")])


@pytest.mark.parametrize("width", [120, 40])
@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[31mred\x1b[0m", "⟨U+001B⟩[31mred"),
        ("\x1b]0;title\x07", "⟨U+001B⟩]0;title⟨U+0007⟩"),
        ("\x9b2J", "⟨U+009B⟩2J"),
        ("a\rb\x08c", "a⟨U+000D⟩b⟨U+0008⟩c"),
        ("\u202eabc\u200b", "⟨U+202E⟩abc⟨U+200B⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("[bold red]x[/] [link=a]", "[bold red]x[/] [link=a]"),
        (":smiley:", ":smiley:"),
    ],
)
def test_text_of_models_and_prompts_cannot_control_the_terminal(text: str, seen: str, width: int) -> None:
    plain = shown([reply("x")], width)
    assert seen in shown([reply(text)], width)
    prompt = dataclasses.replace(PROMPT, messages=(Message("user", text),))
    out = Console(width=width, file=io.StringIO(), force_terminal=True, highlight=False, markup=False, emoji=False)
    out.print(answered(prompt, [reply("x")], width))
    assert seen in out.file.getvalue()  # type: ignore[attr-defined]
    # Nothing but our own two colours: as many escapes as a harmless answer brings.
    assert shown([reply(text)], width).count("\x1b") == plain.count("\x1b")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("0.3", Command("point", MergePoint(0.3))),
        ("λ=0,25", Command("point", MergePoint(0.25))),
        ("+", Command("point", MergePoint(0.6))),
        ("-", Command("point", MergePoint(0.4))),
        ("p What now?", Command("prompt", text="What now?")),
        ("q", Command("quit")),
        ("1.5", Command("help")),
        ("nan", Command("help")),
        ("p ", Command("help")),
        ("", Command("help")),
        ("help", Command("help")),
    ],
)
def test_read_command(line: str, command: Command) -> None:
    assert read_command(line, MergePoint(0.5)) == command


def test_lambda_stays_between_0_and_1() -> None:
    assert read_command("+", MergePoint(0.95)).point == TUNED
    assert read_command("-", BASE).point == BASE
    point: MergePoint | None = BASE
    for _ in range(3):
        assert point is not None
        point = read_command("+", point).point
    assert point == MergePoint(0.3)


class Scripted:
    """A comparison that answers at once, and refuses one prompt."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, MergePoint | None]] = []

    models_at = Comparison.models_at
    _third = None

    def ask(self, prompt: Prompt, model: MergePoint | None) -> Reply:
        assert model is not None
        self.asked.append((prompt.messages[-1].content, model))
        if "too long" in prompt.messages[-1].content:
            raise DataError("the prompt does not fit", "shorten it")
        return reply(f"{prompt.messages[-1].content} at {model.key}", model.lam)


def test_lambda_and_prompt_can_be_changed_until_quit(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["0.2", "+", "what?", "p Too? too long", "p And?", "1", "q", "0.9"])
    heads: list[str] = []

    def typed(head: str) -> str:
        heads.append(head)
        return next(lines)

    monkeypatch.setattr("builtins.input", typed)
    comparison, out = Scripted(), Console(width=120, file=io.StringIO(), markup=False, emoji=False)
    interact(comparison, PROMPT, MergePoint(0.5), out)  # type: ignore[arg-type]
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "What? at 0.2" in text
    assert "What? at 0.3" in text
    assert "mooring: the prompt does not fit; shorten it" in text
    assert "And? at 0.3" in text
    assert [model for asked, model in comparison.asked if asked == "And?"] == [
        BASE,
        MergePoint(0.3),
        TUNED,
        BASE,
        TUNED,
    ]
    assert heads[-1] == "λ = 1 > "
    assert next(lines) == "0.9"


@pytest.mark.parametrize("stop", [EOFError, KeyboardInterrupt])
def test_it_ends_at_the_end_of_the_input(monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    def typed(head: str) -> str:
        raise stop

    monkeypatch.setattr("builtins.input", typed)
    comparison = Scripted()
    interact(comparison, PROMPT, MergePoint(0.5), Console(file=io.StringIO()))  # type: ignore[arg-type]
    assert comparison.asked == []


def test_an_answer_is_not_generated_twice(
    tiny_model_folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mooring

    with mooring.open_comparison(tiny_model_folder, tuned, max_tokens=4) as comparison:
        first = comparison.ask(PROMPT, MergePoint(0.5))
        monkeypatch.setattr(comparison, "_engine", lambda model: pytest.fail("it was asked again"))
        assert comparison.ask(PROMPT, MergePoint(0.1 + 0.4)) is first


def test_each_reply_is_an_event(tiny_model_folder: Path, tuned: Path) -> None:
    import mooring

    events: list[Event] = []
    options = {"lambdas": [0.5], "max_tokens": 2, "on_event": events.append}
    (replies,) = mooring.api.compare(tiny_model_folder, tuned, prompts="What?", **options)  # type: ignore[arg-type]
    assert [(event.done, event.total, event.message) for event in events] == [
        (number, 3, reply.label) for number, reply in enumerate(replies, 1)
    ]
    assert {(event.step, event.kind, event.unit) for event in events} == {("compare", "progress", "replies")}


def test_any_engine_answers_and_is_closed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path, tuned: Path
) -> None:
    opened: list[Any] = []

    class Sweep:
        def __init__(self, spec: Any, scratch: Path) -> None:
            self.runner, self.asked, self.closed = spec.runner, [], 0
            opened.append(self)

        def at(self, point: MergePoint) -> Any:
            self.asked.append(point)
            return self

        def complete(self, prompts: Sequence[Prompt], params: Any) -> Any:
            yield [Completion(prompt_id=prompts[0].id, text=self.asked[-1].label, tokens=1, finish="stop")]

        def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr("mooring.pipeline.compare.open_sweep", Sweep)
    given = ("--engine", "vllm", "--tensor-parallel", 2, "--max-model-len", 512, "--lambdas", 0.5)
    (compared,) = answers(run, tiny_model_folder, tuned, *ASK, *given)
    assert [each["text"] for each in compared["answers"]] == ["base", "λ = 0.5", "tuned"]
    (sweep,) = opened
    assert (sweep.runner.engine, sweep.runner.tensor_parallel, sweep.runner.max_model_len) == ("vllm", 2, 512)
    assert sweep.closed == 1


def test_bad_input(run: Run, tmp_path: Path, tiny_model_folder: Path, tuned: Path, save_tiny_model: Any) -> None:
    pair = (tiny_model_folder, tuned)
    for code, *args in (
        ("usage.one_prompt",),
        ("usage.one_prompt", "--prompt", "a", "--prompts", "b.jsonl"),
        ("data.empty_prompt", "--prompt", "  "),
        ("data.no_file", "--prompts", "none.jsonl"),
        ("recipe.lam_out_of_range", *ASK, "--lambdas", "1.5"),
        ("usage.not_numbers", *ASK, "--lambdas", "a"),
        ("recipe.bad_value", *ASK, "--method", "magic"),
        ("usage.unknown_option", *ASK, "--density", "0.5"),
        ("recipe.bad_value", "--prompt", "a", "--max-tokens", 0),
        ("data.context_exceeded", "--prompt", "long " * 400),
        ("model.not_found", "./none", *ASK),
    ):
        check_refused(run, code, "compare", *pair, *args)
    server = ("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1")
    check_refused(run, "recipe.third_on_a_server", "compare", *pair, tiny_model_folder, *ASK, *server)
    check_refused(run, "recipe.conflict", "compare", *pair, *ASK, "--engine", "openai")
    check_refused(run, "model.equal", "compare", tiny_model_folder, tiny_model_folder, *ASK)
    other = save_tiny_model(tmp_path / "other", num_hidden_layers=3)
    check_refused(run, "model.architecture_mismatch", "compare", tiny_model_folder, other, *ASK)
