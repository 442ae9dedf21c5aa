"""Commands that ask models, and score their answers: `generate`, `score`, `rejudge`, `prefer`, `lm-eval` …"""

import sys
from typing import Any

import click

import mooring
from mooring.cli import OVER_BOUND, render
from mooring.cli.options import HELP, Verb, fields_given, json_option, kind_option, split_option, words
from mooring.options import TaskOptions

_prompts = click.argument("prompts", help="The prompts that they answer: a file, a hub id, advbench, …")


@click.command("generate", cls=Verb, context_settings=HELP, fields="generate")
@click.argument("model", help="Folder, LoRA adapter, .gguf file or hub id; or the model's name on the server.")
@click.argument("prompts", help="A file, a hub id, advbench, bundled:harmful, …")
@click.option("--out", required=True, help="JSON Lines file for the completions.")
@click.option("--likelihood", help="Also write the log-likelihood of the references, for the response loss.")
@kind_option
@split_option
@json_option
def generate(model: str, prompts: str, out: str, as_json: bool, **options: Any) -> None:
    """Answer prompts, sampled as in a run.

    If the command was stopped, the same command continues.

    \b
    Examples:
      mooring generate merged/ advbench --out advbench.jsonl
      mooring generate merged/ task.jsonl --kind task --likelihood loss.jsonl --out task-answers.jsonl
      mooring generate merged/ humaneval --n 50 --temperature 0.6 --top-p 0.9 --top-k 50 --out code.jsonl
      mooring generate my-model advbench --engine openai --base-url http://localhost:8000/v1 --out advbench.jsonl
    """
    own = {name: options[name] for name in ("likelihood", "kind", "split")}
    with render.bar("generate") as on_event:
        completions = mooring.generate(model, prompts, out=out, on_event=on_event, **own, **fields_given(options))
    facts = {"completions": out, "n": len(completions)}
    render.result(facts, f"{len(completions)} completions are in {out}.", as_json=as_json)


@click.command("score", cls=Verb, context_settings=HELP, fields="score", judge=True)
@click.argument("completions", help="A file of `mooring generate`, lm-eval, Inspect, a batch, …")
@_prompts
@click.option("--likelihood", help="The file that `generate --likelihood` wrote.")
@kind_option
@split_option
@json_option
def score(completions: str, prompts: str, as_json: bool, **options: Any) -> None:
    """Score completions: safety, refusals, or the task.

    The options under "Judge models" apply to every judge that has a model.

    \b
    Examples:
      mooring score advbench.jsonl advbench --judges wildguard,rules
      mooring score advbench.jsonl advbench --judges llm --judge-model gpt-x --judge-engine openai --judge-base-url URL
      mooring score task-answers.jsonl task.jsonl --kind task --likelihood loss.jsonl
      mooring score code.jsonl humaneval --metrics pass@1,pass@10
    """
    own = {name: options[name] for name in ("likelihood", "kind", "split")}
    if options["unsafe_exec"]:
        click.echo("mooring: warning: model-written programs run without the sandbox", err=True)
    with render.bar("score") as on_event:
        scores = mooring.score(completions, prompts, on_event=on_event, **own, **fields_given(options))
    render.scores(scores, as_json=as_json)


@click.command("rejudge", cls=Verb, context_settings=HELP, fields="rejudge", judge=True)
@click.argument("run", help="A run folder.")
@json_option
def rejudge(run: str, as_json: bool, **options: Any) -> None:
    """Judge a run's completions by other judges.

    Nothing is generated, and the run stays as it is.

    \b
    Examples:
      mooring rejudge runs/mine --judges wildguard
      mooring rejudge runs/mine --judges llm,rules --judge-model JUDGE
    """
    with render.bar("rejudge") as on_event:
        verdicts = mooring.rejudge(run, on_event=on_event, **fields_given(options))
    render.rejudged(verdicts, as_json=as_json)


@click.command("verify-served", cls=Verb, context_settings=HELP, fields="verify_served", defaults=False)
@click.argument("run", help="A finished run folder.")
@click.option("--base-url", required=True, metavar="TEXT,…", help="Address of the server; several share the work.")
@click.option("--model", help="The model's name on the server; not needed if it has only one.")
@click.option("--name", help="Folder of its responses, below served/ in the run folder. Defaults to the model's name.")
@click.option("--allow-ignored", is_flag=True, help="Go on if the server ignores a setting; a note says which.")
@json_option
def verify_served(run: str, base_url: str, as_json: bool, **options: Any) -> None:
    """Check that a run's verdict holds for the model that is served.

    Asks the served model (quantized, converted, an adapter) the run's test prompts as the run asked its own, judges the
    responses, and compares them in pairs with the run's base and merged model. Exits with 3 if it is not shown to be
    within the run's margin. Options default to the run's own.

    \b
    Examples:
      mooring verify-served runs/mine --base-url http://localhost:8000/v1
      mooring verify-served runs/mine --base-url http://localhost:11434/v1 --model mine:q4 --allow-ignored
    """
    own = {name: options[name] for name in ("model", "name", "allow_ignored")}
    with render.bar("verify-served") as on_event:
        found = mooring.verify_served(run, base_url=words(base_url), on_event=on_event, **own, **fields_given(options))
    render.served(found, as_json=as_json)
    if not found.holds:
        sys.exit(OVER_BOUND)


@click.command("prefer", cls=Verb, context_settings=HELP, fields="prefer")
@click.argument("completions", help="A file that `mooring generate` wrote.")
@click.argument("against", help="Another one, of the same prompts.")
@_prompts
@click.option("--judge", required=True, help="The judge model: folder, hub id, or its name on the server.")
@split_option
@json_option
def prefer(completions: str, against: str, prompts: str, as_json: bool, **options: Any) -> None:
    """Compare two models' completions by a judge model.

    Prints how often the judge prefers COMPLETIONS to AGAINST. Each pair is judged in both orders; if they disagree, it
    is a tie.

    \b
    Examples:
      mooring prefer alpaca.jsonl base.jsonl alpaca-eval --judge JUDGE
    """
    own = {name: options[name] for name in ("judge", "split")}
    with render.bar("prefer") as on_event:
        score = mooring.prefer(completions, against, prompts, on_event=on_event, **own, **fields_given(options))
    render.scores({score.name: score}, as_json=as_json)


@click.command("compare-evals", context_settings=HELP)
@click.argument("first", help="A log of Inspect, lm-eval's samples, or another file with scores.")
@click.argument("second", help="Another one, of the same samples.")
@click.option(
    "--metric", "metrics", multiple=True, help="A score; several may be given. Defaults to all that both have."
)
@click.option("--common", is_flag=True, help="Compare the samples that both have, if others are missing.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap and of the permutations.")
@json_option
def compare_evals(first: str, second: str, metrics: tuple[str, ...], common: bool, seed: int, as_json: bool) -> None:
    """Compare two evaluations of other tools, sample by sample.

    Prints SECOND minus FIRST for each score, with a 95 % interval and the p-value of a paired test. Answers of several
    epochs are averaged. docs/formats.md lists the files that are read.

    \b
    Examples:
      mooring compare-evals base.eval merged.eval
      mooring compare-evals base/samples_gsm8k.jsonl merged/samples_gsm8k.jsonl --metric exact_match,strict-match
      mooring compare-evals harmbench-base.json harmbench-merged.json --json
    """
    found = mooring.compare_evals(first, second, metrics=metrics, common=common, seed=seed)
    render.eval_differences(found, as_json=as_json)


@click.command("lm-eval", cls=Verb, context_settings=HELP, fields="lm_eval")
@click.argument("model", help="A model; the base of the merge if TUNED is given.")
@click.argument("tuned", required=False, help="Merge MODEL with this one, in memory.")
@click.option("--tasks", required=True, metavar="TEXT,…", help="lm-eval's tasks, such as bbh.")
@click.option("--lam", type=float, help="λ, the weight of TUNED.")
@click.option("--num-fewshot", type=int, help="Examples before each question; defaults to the task's own number.")
@click.option("--limit", type=int, help="Maximum number of questions per task.")
@click.option("--apply-chat-template/--no-apply-chat-template", default=True, help="Ask by the model's chat template.")
@click.option(
    "--fewshot-as-multiturn/--no-fewshot-as-multiturn", default=True, help="Examples are turns of the conversation."
)
@click.option("--data", help="A file with the rows of the task, or a folder with one file per task.")
@click.option("--samples", help="A file for questions and answers, as JSON Lines.")
@json_option
def lm_eval(model: str, tuned: str | None, tasks: str, as_json: bool, **options: Any) -> None:
    """Run tasks of lm-evaluation-harness.

    They run on MODEL, or on its merge with TUNED at λ, which is made in memory.

    \b
    Examples:
      mooring lm-eval base/ --tasks bbh
      mooring lm-eval base/ tuned/ --lam 0.6 --tasks bbh --limit 50
    """
    names = ("lam", "samples", *TaskOptions.__annotations__)
    own = {name: options[name] for name in names}
    with render.bar("lm-eval", resumes=False) as on_event:
        scores = mooring.lm_eval(model, tuned, tasks=words(tasks), on_event=on_event, **own, **fields_given(options))
    render.scores(scores, as_json=as_json)
