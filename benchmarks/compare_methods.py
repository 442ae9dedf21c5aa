"""One comparison of methods and tuned models beside one run for each method and tuned model: time, and what was asked.

    python benchmarks/compare_methods.py [--base MODEL --tuned ADAPTER ADAPTER ADAPTER] [--prompts 16] [--tokens 16]

Without models it makes a small random Llama and three LoRA adapters. All runs are in this process, one after the other,
so that the start of Python and the imports are in neither time; the last line is the ratio. Among the single runs is
one of Model Stock, over all tuned models.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mooring

METHODS = ("linear", "slerp", "dare_linear", "model_stock")
TARGET = 0.5
"""The largest ratio that was asked for."""


def make_models(folder: Path) -> tuple[Path, list[Path]]:
    """A small random Llama with a tokenizer, and three adapters on it."""
    import peft
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(chr(code) for code in range(32, 127))]
    raw = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base = folder / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    tuned = []
    for seed in range(3):
        model: Any = peft.get_peft_model(
            LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(r=8, target_modules="all-linear")
        )
        torch.manual_seed(seed + 1)
        for value in model.parameters():
            if value.requires_grad:
                value.data.add_(torch.randn_like(value) * 0.05)
        tuned.append(folder / f"seed{seed + 1}")
        model.save_pretrained(tuned[-1])
    return base, tuned


def write_prompts(folder: Path, count: int) -> dict[str, Any]:
    """Prompts of three sets, as the `score` section of a recipe."""
    requests = [{"prompt": f"Please do the bad thing number {i}."} for i in range(count)]
    calls = [{"prompt": f"Wake me at {i}.", "completion": f"alarm.set(hour={i})"} for i in range(count)]
    for name, rows in (("requests", requests), ("calls", calls)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"safety": str(folder / "requests.jsonl"), "over_refusal": None, "ordinary": None}
    return {**sets, "task": str(folder / "calls.jsonl"), "metrics": ["call_match"]}


def recipes(common: Mapping[str, Any], tuned: Sequence[Path], out: Path) -> Iterator[dict[str, Any]]:
    """One recipe for each method and tuned model."""
    for method in METHODS:
        for number, models in enumerate([tuned] if method == "model_stock" else [[each] for each in tuned], 1):
            name = f"{method}-{number}"
            merge = {"method": method}
            yield {**common, "name": name, "out": str(out / name), "tuned": [*map(str, models)], "merge": merge}


def timed(recipe: Mapping[str, Any]) -> tuple[float, int]:
    """Seconds of a run, and how many responses it generated."""
    started = time.perf_counter()
    outcome = mooring.run(mooring.Recipe.parse(dict(recipe)))
    seconds = time.perf_counter() - started
    names = ("safety", "task")
    files = [path for name in names for path in (outcome.folder / "completions").glob(f"*/{name}-*.jsonl")]
    return seconds, sum(len(path.read_text().splitlines()) for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base")
    parser.add_argument("--tuned", nargs="+")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        made = make_models(work) if given.base is None else (Path(given.base), [Path(each) for each in given.tuned])
        base, tuned = made
        common = {
            "base": str(base),
            "score": write_prompts(work, given.prompts),
            "generate": {"max_tokens": given.tokens, "device": "cpu"},
            "select": {"confidence": None},
        }
        timed({**common, "tuned": str(tuned[0]), "out": str(work / "warm")})  # imports and caches
        single = [timed(recipe) for recipe in recipes(common, tuned, work)]
        merge = {"methods": METHODS}
        whole = timed({**common, "tuned": [*map(str, tuned)], "out": str(work / "whole"), "merge": merge})
    seconds, responses = (sum(column) for column in zip(*single, strict=True))
    print(f"{len(single)} single runs: {seconds:.1f} s, {responses:.0f} responses")
    print(f"one comparison: {whole[0]:.1f} s, {whole[1]} responses")
    ratios = whole[0] / seconds, whole[1] / responses
    print(f"ratio: {ratios[0]:.2f} of the time (target: at most {TARGET:g}), {ratios[1]:.2f} of the responses")


if __name__ == "__main__":
    main()
