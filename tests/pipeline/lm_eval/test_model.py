"""The engine as a model of lm-eval, against lm-eval's own class for Hugging Face models on the same float32 model."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from mooring.chat import has_system_role
from mooring.errors import DataError
from mooring.events import Event
from mooring.inference.transformers import TransformersEngine
from mooring.pipeline.lm_eval.model import MooringLM, StopTokens
from mooring.quiet import quiet

TEXTS = [
    "What is the capital of Norway?",
    " Oslo",
    " The quick brown fox jumps",
    "x " * 100,
    "Write a short poem about the sea",
    "\nThe waves, é and 12",
    "a  ",
]
LONG = "many words " * 300


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ours(tiny_model_folder: Path) -> MooringLM:
    return MooringLM(TransformersEngine.load(tiny_model_folder, batch_size=5, device="cpu"))


@pytest.fixture(scope="module")
def theirs(tiny_model_folder: Path) -> Any:
    with quiet("datasets", "lm_eval"):
        # Their cache of logits mixes up windows of one text that differ in their continuation's length alone.
        return HFLM(str(tiny_model_folder), device="cpu", dtype="float32", batch_size=4, logits_cache=False)


def generate(model: Any, prompts: list[str], **kwargs: Any) -> list[str]:
    requests = [request("generate_until", prompt, {**kwargs}) for prompt in prompts]
    answers: list[str] = model.generate_until(requests, disable_tqdm=True)
    return answers


def test_log_likelihoods_agree(ours: MooringLM, theirs: Any) -> None:
    pairs = [(start, end) for start in ["", *TEXTS, LONG] for end in [*TEXTS, " Oslo is", " Os"]]
    start = "The quick brown"  # what the model itself would say is greedy
    pairs += [(start, generate(ours, [start], max_gen_toks=n)[0]) for n in (1, 2, 4)]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    found, expected = ours.loglikelihood(requests, disable_tqdm=True), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-6, abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}


def test_rolling_log_likelihoods_agree(ours: MooringLM, theirs: Any) -> None:
    requests = [request("loglikelihood_rolling", text) for text in ["", *TEXTS, LONG]]
    with quiet("datasets", "lm_eval"):
        expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"until": ["\n\n", "Q"], "max_gen_toks": 16, "do_sample": False},
        {"until": [" the", "s"], "max_tokens": 24},
        {"until": "e", "max_gen_toks": 24, "temperature": 0.0},
        {"until": [], "max_gen_toks": 12},
    ],
)
def test_generations_agree(ours: MooringLM, theirs: Any, settings: dict[str, Any]) -> None:
    prompts = [*TEXTS, LONG]
    with quiet("datasets", "lm_eval"):
        expected = generate(theirs, prompts, **settings)
    assert generate(ours, prompts, **settings) == expected
    assert len({*expected}) > 3


def test_requests_of_several_settings_keep_their_order(ours: MooringLM) -> None:
    requests = [request("generate_until", text, {"max_gen_toks": n}) for text in TEXTS[:3] for n in (4, 9)]
    alone = [ours.generate_until([single])[0] for single in requests]
    assert ours.generate_until(requests) == alone


def test_sampling_depends_only_on_seed_prompt_and_repeat(tiny_model_folder: Path, ours: MooringLM) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12}
    first = generate(ours, ["a", "b", "a", "a"], **settings)
    assert first == generate(ours, ["a", "b", "a", "a"], **settings)
    assert len({first[0], first[2], first[3]}) == 3
    assert generate(ours, ["b"], **settings) == [first[1]]
    assert generate(MooringLM(ours.engine, seed=7), ["b"], **settings) != [first[1]]


def test_unsupported_generation_settings(ours: MooringLM) -> None:
    with pytest.raises(DataError, match="num_beams") as caught:
        generate(ours, ["a"], num_beams=10)
    assert caught.value.code == "data.unsupported_generation"
    assert generate(ours, ["a"], num_beams=1, max_gen_toks=3)
    with pytest.raises(DataError) as caught:
        generate(ours, ["a"], max_gen_toks=256)
    assert caught.value.code == "data.context_exceeded"
    assert ours.max_length == 256


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every batch that a model computes."""
    from mooring.pipeline.lm_eval import model

    done: list[int] = []

    def counted(function: Any) -> Any:
        def count(of: Any, rows: Any, *arguments: Any) -> Any:
            done.append(len(rows))
            return function(of, rows, *arguments)

        return count

    monkeypatch.setattr(model, "decode", counted(model.decode))
    monkeypatch.setattr(model, "last_log_probs", counted(model.last_log_probs))
    return done


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
def test_an_interrupted_run_resumes(ours: MooringLM, work: list[int], tmp_path: Path, kind: str) -> None:
    arguments = {"generate_until": {"max_gen_toks": 6, "do_sample": True}, "loglikelihood": " Oslo"}
    extra = [arguments[kind]] if kind in arguments else []
    texts = [f"{text} {n}" for n in range(2) for text in TEXTS]
    requests = [request(kind, text, *extra) for text in [*texts, texts[0]]]  # one is asked twice

    def ask(keep: Path | None, stop: int = 10**6, **made_by: str) -> Any:
        def on_event(event: Event) -> None:
            if event.done >= stop:
                raise KeyboardInterrupt

        work.clear()
        return getattr(MooringLM(ours.engine, on_event=on_event, cache=keep, made_by=made_by), kind)(requests)

    whole = ask(None)
    batches = len(work)
    keep = tmp_path / "lam-0" / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(keep, stop=5, model="a")
    assert 0 < len(work) < batches
    before = len(work)
    with keep.open("ab") as file:
        file.write(b'{"key": "cut sh')
    assert ask(keep, model="a") == whole
    assert len(work) == batches - before
    assert ask(keep, model="a") == whole
    assert not work
    assert ask(keep, model="b") == whole  # another model's answers are not taken
    assert len(work) == batches
    assert ask(keep, model="a") == whole
    assert not work


def test_truncated_prompts_are_counted_per_task(ours: MooringLM) -> None:
    def of(task: str, question: int, kind: str, *arguments: Any) -> Instance:
        metadata = (task, question, 1)
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=metadata)  # type: ignore[arg-type]

    model = MooringLM(ours.engine)
    settings = {"max_gen_toks": 2}
    model.generate_until([of("a", n, "generate_until", text, settings) for n, text in enumerate(["x", LONG, LONG])])
    choices = [of("b", n, "loglikelihood", text, end) for n, text in enumerate([LONG, "x"]) for end in (" a", " b")]
    model.loglikelihood(choices)
    assert dict(model.truncated) == {"a": 2, "b": 1}
    fits = ours.tok_decode(ours.tok_encode("many words " * 500)[1:255], False)
    length = len(ours.tok_encode(fits))
    model.generate_until([of("c", 0, "generate_until", fits, {"max_gen_toks": 256 - length})])
    assert model.truncated["c"] == 0
    model.generate_until([of("c", 0, "generate_until", fits, {"max_gen_toks": 257 - length})])
    assert model.truncated["c"] == 1


def test_progress_ends_at_the_total(ours: MooringLM) -> None:
    events: list[Event] = []
    model = MooringLM(ours.engine, on_event=events.append)
    generate(model, TEXTS, max_gen_toks=2)
    last = Event(step="lm_eval", kind="progress", done=len(TEXTS), total=len(TEXTS), unit="requests")
    assert events[-1] == last
    model.loglikelihood([request("loglikelihood", "a", text) for text in TEXTS], disable_tqdm=True)
    assert events[-1] == last


def test_chat_template(ours: MooringLM, tiny_tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    opened = ours.apply_chat_template(turns[:1])
    assert opened == tiny_tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    prefilled = tiny_tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    assert ours.apply_chat_template(turns, add_generation_prompt=False) == prefilled
    assert has_system_role(ours.tokenizer)
    assert ours.tok_encode(opened).count(tiny_tokenizer.bos_token_id) == opened.count(tiny_tokenizer.bos_token)


def test_created_by_name_as_on_lm_evals_command_line(
    tiny_model_folder: Path, save_tiny_model: Any, tmp_path: Path
) -> None:
    tuned = save_tiny_model(tmp_path / "tuned", seed=1)
    kind = get_model("mooring")
    at_0 = kind.create_from_arg_string(f"base={tiny_model_folder},tuned={tuned},lam=0,device=cpu", {"batch_size": "2"})
    base = kind.create_from_arg_obj({"base": str(tiny_model_folder), "device": "cpu"})
    at_1 = kind.create_from_arg_obj({"base": str(tiny_model_folder), "tuned": str(tuned), "lam": 1, "device": "cpu"})
    assert at_0.batch_size == 2
    answers = [generate(model, TEXTS, max_gen_toks=6) for model in (base, at_0, at_1)]
    assert answers[0] == answers[1] != answers[2]


def test_stop_strings(tiny_tokenizer: Any) -> None:
    tokens = StopTokens(tiny_tokenizer).containing(["the", ""])
    assert tokens
    assert all("the" in tiny_tokenizer.decode([token]) for token in tokens)
    assert not StopTokens(tiny_tokenizer).containing([])


def test_a_stop_string_over_several_tokens_ends_a_row_early(tiny_model_folder: Path) -> None:
    """The row takes no more tokens than the string needs, and the others go on."""
    from mooring.inference.decode import decode
    from mooring.inference.transformers import TransformersEngine
    from mooring.pipeline.lm_eval.model import StopTokens
    from mooring.sampling import SamplingParams

    engine = TransformersEngine.load(tiny_model_folder, device="cpu", dtype="float32")
    rows = [engine.tokenizer(text)["input_ids"] for text in ("Oslo is the", "Write a poem")]
    settings = SamplingParams(max_tokens=24)
    whole = decode(engine.model, rows, ["a", "b"], settings, (), 0)
    text = engine.tokenizer.decode(whole[0][:4])
    ended = StopTokens(engine.tokenizer).detector([text])
    assert len(text) > 4
    made = decode(engine.model, rows, ["a", "b"], settings, (), 0, ended)
    assert made[0] == whole[0][:4]
    assert made[1] == whole[1] or text in engine.tokenizer.decode(made[1])


def test_a_template_without_a_system_role(tiny_model_folder: Path) -> None:
    model = MooringLM(TransformersEngine.load(tiny_model_folder, device="cpu"))
    model.tokenizer.chat_template = (
        "{% for message in messages if message.role != 'system' %}{{ message.content }}{% endfor %}"
    )
    assert not has_system_role(model.tokenizer)
