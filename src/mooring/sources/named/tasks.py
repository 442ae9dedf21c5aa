"""Task data by name: rows to tune on, to choose λ by, and to report on."""

from mooring.sources.named.read import by_language, columns, completed, pairs, program, reasoned
from mooring.sources.named.spec import NamedSet, Table

SPLIT_SEED = 42
"""Of the parts of task data: fixed, so that runs with other seeds tune, choose and report on the same rows."""
_DOCTOR = pairs(prompt="input", completion="output")
_ICLINIQ = pairs(prompt="input", completion="answer_icliniq")
_MAGICODER = pairs(prompt="problem", completion="solution", category="lang")

TASKS: dict[str, NamedSet] = {
    "flan-cot": NamedSet(
        kind="task",
        tables=(
            Table(
                path="flan_cot/*.tsv",
                read=columns("question", "answer", "rationale"),
                counts=(33443,),
                shape=reasoned,
            ),
            Table(
                repo="SirNeural/flan_v2",
                files=("cot_zs_opt_train.jsonl.gz",),
                shape=pairs(prompt="inputs", completion="targets", category="task"),
            ),
        ),
        reads="zero-shot chain of thought: the question; the rationale and `So the answer is X.`",
        licence="Apache-2.0",
        validation=0.1,
        test=1000,
    ),
    "chatdoctor": NamedSet(
        kind="task",
        tables=(
            Table(path="chatdoctor/chatdoctor5k.json", counts=(5452,), shape=_DOCTOR),
            Table(
                repo="lavita/ChatDoctor-HealthCareMagic-100k",
                split="train",
                counts=(112165,),
                shape=_DOCTOR,
            ),
        ),
        test_tables=(
            Table(path="chatdoctor/iCliniq.json", counts=(7321,), shape=_ICLINIQ),
            Table(
                repo="lavita/ChatDoctor-iCliniq",
                split="train",
                counts=(7321,),
                shape=_ICLINIQ,
            ),
        ),
        reads="`input`, `output`; test: 1,000 of iCliniq, or held out where only the 5k file is at hand",
        licence="Apache-2.0 (folder); none named (hub)",
        validation=0.1,
        test=1000,
    ),
    "magicoder": NamedSet(
        kind="task",
        tables=(
            Table(path="magicoder/data-oss_instruct-decontaminated.jsonl", counts=(75197,), shape=_MAGICODER),
            Table(repo="ise-uiuc/Magicoder-OSS-Instruct-75K", split="train", counts=(75197,), shape=_MAGICODER),
        ),
        reads="`problem`, `solution`, `lang`; evenly over nine languages: `magicoder:train#10000/lang`",
        licence="MIT",
        validation=0.1,
        test=1000,
        group="lang",
    ),
    "mbxp": NamedSet(
        kind="task",
        tables=(Table(path="mbxp/*.jsonl", read=by_language, counts=(5251,), shape=completed),),
        reads="six languages, rows with a solution: the head of a function; the whole of it",
        licence="CC BY 4.0",
        validation=0.1,
        test=500,
        same=lambda prompt: prompt.id.rpartition("/")[2],  # the same problem in another language
        group="language",
        lacking="put mbxp's *_release_v1*.jsonl into $MOORING_DATA/mbxp (github.com/amazon-science/mxeval)",
    ),
    "openfunctions": NamedSet(
        kind="task",
        tables=(Table(path="openfunctions/openfunctions_train.json", counts=(2211,)),),
        test_tables=(Table(path="openfunctions/openfunctions_test.json", counts=(112,)),),
        reads="`instruction`, `output`; test: its whole test file",
        licence="Apache-2.0",
        validation=0.1,
        lacking="put openfunctions_train.json and openfunctions_test.json into $MOORING_DATA/openfunctions "
        "(github.com/sail-sg/sdft, data/openfunction)",
    ),
    "humaneval": NamedSet(
        kind="task",
        tables=(
            Table(path="humaneval/HumanEval.jsonl.gz", counts=(164,), shape=program),
            Table(repo="openai/openai_humaneval", split="test", counts=(164,), shape=program),
        ),
        reads="`prompt`, `canonical_solution`; `test` and `entry_point` for the checker",
        licence="MIT",
    ),
}
"""The paper's task data, and a local stand-in for MagiCoder."""
