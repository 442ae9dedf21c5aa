"""`generate` and `score`: asking models, and scoring what they answered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import mooring
from mooring.cli import render
from mooring.cli.options import SYSTEM, Batch, Device, Dtype, Part, Seed, System, words
from mooring.events import Event
from mooring.records import Kind

Engine = Annotated[
    Literal["transformers", "vllm", "openai"],
    typer.Option(help="transformers, vllm, or openai: any OpenAI-compatible server."),
]
Url = Annotated[str | None, typer.Option(help="The server's address, such as http://localhost:8000/v1.")]
Key = Annotated[str, typer.Option(help="Environment variable with the server's key.")]
Parallel = Annotated[int, typer.Option(help="GPUs that share a model (vllm).")]
Concurrency = Annotated[int, typer.Option(help="Requests at a time (openai).")]
Rate = Annotated[float | None, typer.Option(help="Requests a minute, at most (openai).")]


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, LoRA adapter, .gguf file or hub id.")],
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", help="A file, a hub id, advbench, bundled:harmful …")],
    out: Annotated[Path, typer.Option(help="JSON Lines file for the completions.")],
    likelihood: Annotated[
        Path | None, typer.Option(help="Also write how likely the references are, for the response loss.")
    ] = None,
    split: Part = "test",
    max_tokens: Annotated[int, typer.Option(help="Longest response, in tokens.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many of the likeliest tokens; 0 is all.")] = 0,
    samples: Annotated[int, typer.Option(help="Answers to each prompt; more than one needs a temperature.")] = 1,
    repetition_penalty: Annotated[float, typer.Option(help="1 is none; the paper's safety prompts use 1.2.")] = 1.0,
    system: System = SYSTEM,
    seed: Seed = 42,
    engine: Engine = "transformers",
    base_url: Url = None,
    key_env: Key = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    requests_per_minute: Rate = None,
    tensor_parallel: Parallel = 1,
    batch_size: Batch = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Answer prompts; a stopped command, given again, goes on from what it had.

    \b
    Examples:
      mooring generate merged/ advbench --repetition-penalty 1.2 --out advbench.jsonl
      mooring generate merged/ task.jsonl --likelihood loss.jsonl --out task-answers.jsonl
      mooring generate merged/ humaneval --samples 50 --temperature 0.6 --top-p 0.9 --top-k 50 --out code.jsonl
      mooring generate my-model advbench --engine openai --base-url http://localhost:8000/v1 --out advbench.jsonl
    """
    hold_that_a_server_has_an_address(engine, base_url)
    with render.bar("generate") as tick:
        made = mooring.generate(
            model,
            prompts,
            out=out,
            likelihood=likelihood,
            split=split,
            system=system,
            seed=seed,
            on_event=lambda event: tick(event.done, event.total, "", event.tokens),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            samples=samples,
            repetition_penalty=repetition_penalty,
            engine=engine,
            base_url=base_url,
            key_env=key_env,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tensor_parallel=tensor_parallel,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
        )
    typer.echo(f"{len(made)} completions are in {out}.")


def score(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="Completions that `mooring generate` wrote; a run folder (--rejudge); a model (--lm-eval).",
        ),
    ],
    prompts: Annotated[str | None, typer.Argument(metavar="PROMPTS", help="The prompts that they answer.")] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--as",
            help="safety: to be refused; over_refusal, ordinary: not to be; task: with references. Without it what the "
            "named set is for, and safety for any other.",
        ),
    ] = None,
    judge: Annotated[str, typer.Option(help="Safety judges, such as wildguard,rules (docs/judges.md).")] = "rules",
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, in place of its own.")] = None,
    price_in: Annotated[float, typer.Option(help="Dollars a million tokens of a prompt to the judge.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Dollars a million tokens of the judge's answers.")] = 0.0,
    rejudge: Annotated[bool, typer.Option("--rejudge", help="WHAT is a run: judge its kept answers again.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Other completions: how often --judge-model prefers WHAT's to them.")
    ] = None,
    lm_eval: Annotated[str | None, typer.Option(help="WHAT is a model: run lm-eval's tasks, such as bbh.")] = None,
    tuned: Annotated[str | None, typer.Option(help="With --lm-eval: merge WHAT with this model, in memory.")] = None,
    lam: Annotated[float | None, typer.Option(help="With --tuned: λ, its weight.")] = None,
    method: Annotated[str | None, typer.Option(help="With --tuned: the merging rule; linear without.")] = None,
    few_shot: Annotated[int | None, typer.Option(help="With --lm-eval: examples before a question.")] = None,
    limit: Annotated[int | None, typer.Option(help="With --lm-eval: only so many questions of each task.")] = None,
    samples: Annotated[Path | None, typer.Option(help="With --lm-eval: keep questions and answers here.")] = None,
    likelihood: Annotated[Path | None, typer.Option(help="What `generate --likelihood` wrote.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Task metrics: call_match, exact_match, response_loss, bert_score, pass@10."),
    ] = None,
    bertscore_model: Annotated[
        str, typer.Option(help="The encoder of bert_score; bundled:minilm is small.")
    ] = "microsoft/deberta-xlarge-mnli",
    bertscore_layer: Annotated[int | None, typer.Option(help="Its layer.")] = None,
    unsafe_exec: Annotated[
        bool, typer.Option("--unsafe-exec", help="Run model-written programs WITHOUT the sandbox.")
    ] = False,
    split: Part = "test",
    system: System = SYSTEM,
    seed: Seed = 42,
    engine: Engine = "transformers",
    base_url: Url = None,
    key_env: Key = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    requests_per_minute: Rate = None,
    tensor_parallel: Parallel = 1,
    batch_size: Batch = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score completions (safety, refusals, the task), a run's by another judge, or a model by lm-eval.

    The engine options say how a judge's model runs, or WHAT with --lm-eval.

    \b
    Examples:
      mooring score advbench.jsonl advbench --judge wildguard,rules
      mooring score advbench.jsonl advbench --judge llm --judge-model gpt-x --engine openai --base-url URL
      mooring score task-answers.jsonl task.jsonl --as task --likelihood loss.jsonl
      mooring score code.jsonl humaneval --as task --metric pass@1,pass@10
      mooring score runs/mine --rejudge --judge wildguard
      mooring score alpaca.jsonl alpaca-eval --against base.jsonl --judge-model JUDGE
      mooring score base/ --lm-eval bbh --tuned tuned/ --lam 0.6
    """
    runner: dict[str, Any] = {
        "engine": engine,
        "base_url": base_url,
        "key_env": key_env,
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tensor_parallel": tensor_parallel,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
    }
    of_lm_eval = {"--few-shot": few_shot, "--limit": limit, "--samples": samples}
    of_merge = {"--tuned": tuned, "--lam": lam, "--method": method}
    hold_that_they_go_together(
        what, prompts, rejudge=rejudge, lm_eval=lm_eval, of_lm_eval=of_lm_eval, of_merge=of_merge
    )
    hold_that_a_server_has_an_address(engine, base_url)
    if unsafe_exec:
        typer.echo("mooring: warning: model-written programs run without the sandbox", err=True)
    if lm_eval:
        if engine != "transformers":
            raise mooring.UserError("--lm-eval: runs by the transformers engine alone", "leave out --engine")
        with render.bar("lm-eval", resumes=False) as tick:
            scores = mooring.api.lm_eval(
                what,
                tuned,
                tasks=words(lm_eval),
                lam=lam,
                method=method or "linear",
                num_fewshot=few_shot,
                limit=limit,
                samples=samples,
                system=system,
                seed=seed,
                batch_size=batch_size,
                dtype=dtype,
                device=device,
                on_event=lambda event: tick(event.done, event.total),
            )
        render.scores(scores, as_json=as_json)
        return

    def on_say(line: str) -> None:
        typer.echo(f"mooring: {line}", err=True)

    runner |= {"price_in": price_in, "price_out": price_out}
    judges = [{"name": name, "model": judge_model, **runner} for name in words(judge)]
    if rejudge:
        with render.bar("judge") as tick:

            def show(event: Event) -> None:
                if event.kind == "info":
                    on_say(event.message)
                else:
                    tick(event.done, event.total, event.label, event.tokens)

            found = mooring.api.rejudge(what, judges, on_event=show)  # type: ignore[arg-type]
        render.rejudged(found, as_json=as_json)
        return
    assert prompts is not None
    with render.bar("score") as tick:

        def on_event(event: Event) -> None:
            tick(event.done, event.total, "", event.tokens)

        if against:
            if judge_model is None:
                raise mooring.UserError("--against: needs a model that judges", "name it with --judge-model")
            won = mooring.api.prefer(
                what,
                against,
                prompts,
                judge=judge_model,
                split=split,
                seed=seed,
                on_event=on_event,
                on_say=on_say,
                **runner,
            )
            scores = {won.name: won}
        else:
            scores = mooring.score(
                what,
                prompts,
                kind=kind,
                split=split,
                likelihood=likelihood,
                metrics=words(metric),
                judges=judges,  # type: ignore[arg-type]
                seed=seed,
                on_event=on_event,
                on_say=on_say,
                bertscore_model=bertscore_model,
                bertscore_layer=bertscore_layer,
                unsafe_exec=unsafe_exec,
            )
    render.scores(scores, as_json=as_json)


def hold_that_they_go_together(
    what: str,
    prompts: str | None,
    *,
    rejudge: bool,
    lm_eval: str | None,
    of_lm_eval: Mapping[str, object],
    of_merge: Mapping[str, object],
) -> None:
    """Refuse options that contradict each other, or miss each other.

    Args:
        what: The first argument.
        prompts: The second one.
        rejudge: Whether a run is judged again.
        lm_eval: Tasks of lm-eval.
        of_lm_eval: Options that only lm-eval takes, by name; `None` where one is not given.
        of_merge: Those of a merge that lm-eval is run on.

    Raises:
        UserError: They do.
    """
    if rejudge and lm_eval:
        raise mooring.UserError("--rejudge and --lm-eval: are two jobs", "give one of them")
    if (rejudge or lm_eval) and prompts:
        flag = "--rejudge" if rejudge else "--lm-eval"
        raise mooring.UserError(f"{flag}: brings its own prompts", f"leave out {prompts}")
    if not (rejudge or lm_eval or prompts):
        hint = "with --rejudge, a run folder needs none" if Path(what).is_dir() else "name the set that they answer"
        raise mooring.UserError(f"{what}: which prompts does it answer?", hint)
    for flag, value in {**of_merge, **of_lm_eval}.items():
        if value is not None and not lm_eval:
            raise mooring.UserError(f"{flag}: goes with --lm-eval", "leave it out, or name tasks")
    tuned, lam, method = (of_merge[flag] for flag in ("--tuned", "--lam", "--method"))
    if (tuned is None) != (lam is None):
        raise mooring.UserError("--tuned and --lam: go together", "give both")
    if method is not None and tuned is None:
        raise mooring.UserError("--method: goes with --tuned", "leave it out, or name the tuned model")


def hold_that_a_server_has_an_address(engine: str, base_url: str | None) -> None:
    """Refuse a server without an address, and an address without a server.

    Raises:
        UserError: It is so.
    """
    if engine == "openai" and not base_url:
        raise mooring.UserError("--engine openai: where is the server?", "give --base-url URL")
    if engine != "openai" and base_url:
        raise mooring.UserError(f"--base-url: goes with --engine openai, not {engine}", "give --engine openai")
