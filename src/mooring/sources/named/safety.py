"""Prompt sets by name: requests to refuse, harmless ones that sound harmful, and answers in general."""

from mooring.sources.named.read import HARMS, different, fields, harms, transcript, with_context
from mooring.sources.named.spec import NamedSet, Table

_HARMBENCH = "harmbench/harmbench_behaviors_text_all.csv"
_HEX_PHI = tuple(f"category_{number}.csv" for number in HARMS)
_HARMBENCH_READS = "`{}`; hub: `prompt`; folder: HarmBench's own csv, `Behavior`"

_ALPACA = fields(prompt="instruction", completion="output", category="dataset")


def _jailbreakbench(half: str) -> tuple[Table, ...]:
    repo = "JailbreakBench/JBB-Behaviors"
    path = f"jailbreakbench/{half}-behaviors.csv"
    return Table(path=path, counts=(100,)), Table(repo=repo, config="behaviors", split=half, counts=(100,))


def _xstest(label: str, count: int) -> tuple[Table, ...]:
    only, counts = ("label", label), (count,)
    return (
        Table(path="xstest/xstest_prompts.csv", only=only, counts=counts),
        Table(repo="walledai/XSTest", split="test", only=only, counts=counts),
    )


def _or_bench(config: str, count: int) -> tuple[Table, ...]:
    shape = fields(prompt="prompt", category="category")
    return (
        Table(path=f"or_bench/{config}.csv", counts=(count,), shape=shape),
        Table(repo="bench-llm/or-bench", config=config, split="train", counts=(count,), shape=shape),
    )


def _strongreject() -> tuple[Table, ...]:
    own = fields(prompt="forbidden_prompt", category="category")
    return (
        Table(path="strongreject/strongreject_dataset.csv", counts=(313,), shape=own),
        Table(
            repo="walledai/StrongREJECT",
            split="train",
            counts=(313,),
            shape=fields(prompt="prompt", category="category"),
        ),
    )


SAFETY: dict[str, NamedSet] = {
    "advbench": NamedSet(
        kind="safety",
        tables=(
            Table(path="advbench/harmful_behaviors.csv", counts=(520,)),
            Table(repo="walledai/AdvBench", split="train", counts=(520,)),
        ),
        reads="harmful behaviours: `goal` (hub: `prompt`), no `target`",
        licence="MIT",
        gated=True,
    ),
    "hex-phi": NamedSet(
        kind="safety",
        tables=(
            Table(path="hex_phi/category_*.csv", read=harms, counts=(300, 330)),
            Table(
                repo="LLM-Tuning-Safety/HEx-PHI",
                files=_HEX_PHI,
                may_lack=("category_2.csv",),  # withdrawn by its authors
                read=harms,
                counts=(300, 330),
            ),
        ),
        reads="30 a category, a headerless csv each; 11 categories as published, 10 now",
        licence="its own agreement",
        gated=True,
    ),
    "harmbench": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "standard"),
                counts=(200,),
                shape=fields(id="BehaviorID", prompt="Behavior", category="SemanticCategory"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="standard",
                split="train",
                counts=(200,),
                shape=fields(prompt="prompt", category="category"),
            ),
        ),
        reads=_HARMBENCH_READS.format("standard"),
        licence="MIT",
        gated=True,
    ),
    "harmbench-contextual": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "contextual"),
                counts=(100,),
                shape=with_context("Behavior", "ContextString", "SemanticCategory"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="contextual",
                split="train",
                counts=(100,),
                shape=with_context("prompt", "context", "category"),
            ),
        ),
        reads=_HARMBENCH_READS.format("contextual") + "; the context in front, `---` between",
        licence="MIT",
        gated=True,
    ),
    "harmbench-copyright": NamedSet(
        kind="safety",
        tables=(
            Table(
                path=_HARMBENCH,
                only=("FunctionalCategory", "copyright"),
                counts=(100,),
                shape=fields(id="BehaviorID", prompt="Behavior"),
            ),
            Table(
                repo="walledai/HarmBench",
                config="copyright",
                split="train",
                counts=(100,),
                shape=fields(prompt="prompt"),
            ),
        ),
        reads=_HARMBENCH_READS.format("copyright"),
        licence="MIT",
        gated=True,
    ),
    "strongreject": NamedSet(
        kind="safety",
        tables=_strongreject(),
        reads="`forbidden_prompt` (hub: `prompt`), `category`",
        licence="MIT",
        gated=True,
    ),
    "jailbreakbench": NamedSet(
        kind="safety",
        tables=_jailbreakbench("harmful"),
        reads="`Goal`, `Category`",
        licence="MIT",
    ),
    "hh-rlhf": NamedSet(
        kind="safety",
        tables=(
            Table(path="hh_harmless/hh_harmless_base_test.jsonl.gz", counts=(2312,), shape=transcript),
            Table(
                repo="Anthropic/hh-rlhf",
                files=("harmless-base/test.jsonl.gz",),
                counts=(2312,),
                shape=transcript,
            ),
        ),
        reads="harmless-base, test: `chosen` up to its last answer, as a conversation",
        licence="MIT",
    ),
    "beavertails": NamedSet(
        kind="safety",
        tables=(
            Table(path="beavertails/test.jsonl.gz", counts=(3021,), shape=different),
            Table(repo="PKU-Alignment/BeaverTails", split="30k_test", counts=(3021,), shape=different),
        ),
        reads="`30k_test`: the questions of its 3,021 answers, each once",
        licence="CC BY-NC 4.0",
    ),
    "or-bench-toxic": NamedSet(
        kind="safety",
        tables=_or_bench("or-bench-toxic", 655),
        reads="`prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "xstest-unsafe": NamedSet(
        kind="safety",
        tables=_xstest("unsafe", 200),
        reads="`prompt` where `label` is unsafe, `type`",
        licence="CC BY 4.0",
        gated=True,
    ),
    "xstest": NamedSet(
        kind="over_refusal",
        tables=_xstest("safe", 250),
        reads="`prompt` where `label` is safe, `type`",
        licence="CC BY 4.0",
        gated=True,
    ),
    "or-bench": NamedSet(
        kind="over_refusal",
        tables=_or_bench("or-bench-hard-1k", 1319),
        reads="hard-1k: `prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "or-bench-80k": NamedSet(
        kind="over_refusal",
        tables=_or_bench("or-bench-80k", 80359),
        reads="`prompt`, `category`",
        licence="CC BY 4.0",
    ),
    "jailbreakbench-benign": NamedSet(
        kind="over_refusal",
        tables=_jailbreakbench("benign"),
        reads="`Goal`, `Category`",
        licence="MIT",
    ),
    "alpaca-eval": NamedSet(
        kind="quality",
        tables=(
            Table(path="alpaca_eval/alpaca_eval.json", counts=(805,), shape=_ALPACA),
            Table(repo="tatsu-lab/alpaca_eval", files=("alpaca_eval.json",), counts=(805,), shape=_ALPACA),
        ),
        reads="`instruction`, `output` (of text-davinci-003), `dataset`",
        licence="CC BY-NC 4.0",
        group="dataset",
    ),
}
"""The sets that are asked of a model and not tuned on."""
