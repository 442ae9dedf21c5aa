"""Prompts that do not fit the context of a model, found before anything is generated."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring.attacks import kind_of
from mooring.config import Metric, Recipe, Runner
from mooring.errors import DataError
from mooring.inference.encode import encode_examples, encode_prompts
from mooring.inference.folder import open_folder
from mooring.metrics import needs_completions, needs_likelihoods
from mooring.models import is_adapter
from mooring.models.classes import context_length, load_config, load_tokenizer, text_config
from mooring.quiet import quiet
from mooring.records import Half, Prompt, SetName

TooLong = Mapping[tuple[SetName, Half], Mapping[str, DataError]]
"""By set and split, the ids of prompts that do not fit, each with the error that the engine would raise."""
Sets = Mapping[SetName, Mapping[Half, Sequence[Prompt]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """How a model reads prompts.

    Attributes:
        tokenizer: Its tokenizer, with a chat template.
        context: Maximum number of tokens of a prompt and its response together; None if that is not known.
    """

    tokenizer: Any
    context: int | None

    @classmethod
    def of(cls, folder: Path, runner: Runner) -> "Reader":
        """How the model in a folder reads prompts with the engine of a recipe. Loads no weights."""
        with quiet("transformers"):
            return cls(load_tokenizer(folder), _context(folder, runner))


def readers(recipe: Recipe, base: Path, tuned: Sequence[Path]) -> list[Reader]:
    """How base and tuned models read prompts; a tuned model only if it has a tokenizer of its own."""
    found = [Reader.of(base, recipe.generate)]
    for folder in tuned:
        if (folder / "tokenizer_config.json").is_file():
            if is_adapter(folder):
                found.append(dataclasses.replace(found[0], tokenizer=load_tokenizer(folder)))
            else:
                found.append(Reader.of(folder, recipe.generate))
    return found


def too_long(recipe: Recipe, sets: Sets, metrics: Mapping[Half, Sequence[Metric]], models: Sequence[Reader]) -> TooLong:
    """The prompts of a run that do not fit the context of one of its models, with the response or the reference.

    Raises:
        DataError: A prompt has no reference, and its likelihood is needed.
        ModelError: A tokenizer has no chat template.
    """
    found: dict[tuple[SetName, Half], dict[str, DataError]] = {}
    for name, halves in sets.items():
        max_tokens = recipe.generate.sampling(kind_of(name), recipe.seed).max_tokens
        for half, prompts in halves.items():
            of_task = name == "task"
            answered = not of_task or needs_completions(metrics[half])
            scored = of_task and needs_likelihoods(metrics[half])
            for model in models:
                for prompt in prompts:
                    for error in _faults(prompt, recipe, model, max_tokens if answered else None, scored):
                        found.setdefault((name, half), {}).setdefault(prompt.id, error)
    return found


def refuse(found: TooLong, sets: Sets) -> None:
    """Raise DataError if a prompt does not fit."""
    for (name, half), errors in found.items():
        first = next(iter(errors.values()))
        count = f"{len(errors)} of {len(sets[name][half])} {name} prompts ({half}) are too long, such as "
        raise DataError(
            f"{count}{first.message}",
            "shorten them, lower generate.max_tokens, or leave them out: --set score.too_long=skip",
            code="data.context_exceeded",
        )


def without(sets: Sets, found: TooLong) -> dict[SetName, dict[Half, list[Prompt]]]:
    """The sets without the prompts that do not fit.

    Raises:
        DataError: None of a set and split is left.
    """
    left: dict[SetName, dict[Half, list[Prompt]]] = {}
    for name, halves in sets.items():
        left[name] = {}
        for half, prompts in halves.items():
            kept = [prompt for prompt in prompts if prompt.id not in found.get((name, half), {})]
            if prompts and not kept:
                refuse({(name, half): found[name, half]}, sets)
            left[name][half] = kept
    return left


def describe(counts: Mapping[tuple[SetName, Half], int]) -> str:
    """How many prompts were left out, in a sentence."""
    parts = ", ".join(f"{count} of {name} ({half})" for (name, half), count in sorted(counts.items()))
    return f"Prompts that do not fit the model's context were left out: {parts}."


def _faults(prompt: Prompt, recipe: Recipe, model: Reader, max_tokens: int | None, scored: bool) -> Iterator[DataError]:
    """Why a prompt does not fit, at most once for its response and once for its reference."""
    reserve = 1 if recipe.generate.engine == "vllm" else 0  # vLLM generates at least one token
    system, thinking = recipe.system, recipe.generate.thinking
    try:
        if max_tokens is not None:
            encode_prompts(model.tokenizer, [prompt], system, max_tokens, model.context, thinking)
        if scored:
            encode_examples(model.tokenizer, [prompt], system, model.context, reserve, thinking)
    except DataError as error:
        if error.code != "data.context_exceeded":
            raise
        yield error


def _context(folder: Path, runner: Runner) -> int | None:
    """A model's context in an engine. vLLM extends it where positions are scaled, by rules of its own."""
    config = load_config(open_folder(folder).base)
    if runner.engine != "vllm":
        return context_length(config)
    scaled = "'factor'" in str(getattr(text_config(config), "rope_parameters", None))
    return runner.max_model_len or (None if scaled else context_length(config))
