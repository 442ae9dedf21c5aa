"""What models answer: whole sets or some prompts of them, kept as they are made, a neighbour's answers as drafts."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mooring import sources
from mooring.generate.engine import Engine, Settings, share_saved
from mooring.generate.store import complete_to_file
from mooring.recipe import Recipe
from mooring.records import Completion, Prompt, read_jsonl
from mooring.run.sets import Name
from mooring.run.store import Event, Store, key_of

Spot = tuple[float, str]
"""A model of a run: its λ, and the name of its folder below `completions/`."""
Place = tuple[Spot, str, str]
"""A model, a half and a set: where completions belong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """The model at one λ.

    Attributes:
        lam: Its λ.
        key: Digest of what it is made from.
        label: What people call it.
        engine: Brings it into memory; called whenever it must be asked something, since another may have taken its
            place meanwhile.
        modules: Where λ differs by module, λ by group of modules; `lam` is then that of all else.
    """

    lam: float
    key: str
    label: str
    engine: Callable[[], Engine]
    modules: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its folder below `completions/`."""
        return folder_of(self.lam, self.modules)

    @property
    def spot(self) -> Spot:
        """What its answers go by."""
        return self.lam, self.name


class Answers:
    """The answers of a run's models.

    Args:
        recipe: The run's recipe.
        store: The run folder.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self._recipe, self._store = recipe, store
        self._keys: dict[Place, str] = {}
        self._parts: dict[Place, list[Path]] = {}
        self._drafted: list[Completion] = []

    def whole(self, subject: Subject, split: sources.Half, name: Name, prompts: Sequence[Prompt]) -> str:
        """Ask a model a whole set, but for what it was asked before; returns the step's key."""
        place = subject.spot, split, name
        step, inputs, path = self._step(subject, name, split, prompts)
        self._keys[place] = self._store.once(
            step, inputs, [path], lambda: self._write(step, subject, name, prompts, path, place, self._known(place))
        )
        return self._keys[place]

    def some(
        self,
        subject: Subject,
        split: sources.Half,
        name: Name,
        prompts: Sequence[Prompt],
        all_prompts: Sequence[Prompt],
    ) -> list[Completion]:
        """Ask a model some prompts of a set, but for what it was asked before, of the whole set or of some.

        `whole` takes these completions over. A step each, so that a search which is stopped goes on: asked the same in
        the same order, it does nothing twice.

        Args:
            subject: The model.
            split: A half of the set.
            name: The set.
            prompts: Prompts of it.
            all_prompts: The whole of it.

        Returns:
            Their completions, in the order of the prompts; the first of each where there are several.
        """
        place = subject.spot, split, name
        step, inputs, path = self._step(subject, name, split, all_prompts)
        if place not in self._keys and self._store.is_done(step, key_of([step, inputs]), [path]):
            self._keys[place] = self._store.once(step, inputs, [path], lambda: None)
        known = self._known(place)
        missing = [prompt for prompt in prompts if prompt.id not in known]
        if missing:
            parts = self._parts.setdefault(place, [])
            part, inputs[1] = f"{step}, part {len(parts) + 1}", sources.digest(missing)
            out = path.with_name(f"{path.stem}.part-{len(parts) + 1}.jsonl")
            self._store.once(part, inputs, [out], lambda: self._write(part, subject, name, missing, out, place, {}))
            parts.append(out)
            known = self._known(place)
        return [known[prompt.id] for prompt in prompts]

    def _step(
        self, subject: Subject, name: Name, split: sources.Half, prompts: Sequence[Prompt]
    ) -> tuple[str, list[Any], Path]:
        """The step of a model's answers to a set: its name, all that they hang on, and their file."""
        section = self._recipe.generate
        inputs = [
            subject.key,
            sources.digest(prompts),
            dataclasses.asdict(settings_for(self._recipe, name)),
            self._recipe.system,
            [section.engine, section.batch_size, section.dtype, section.device, *versions(section.engine)],
        ]
        path = self._store.folder / "completions" / subject.name / f"{name}-{split}.jsonl"
        return f"{subject.label}: answer {name} ({split})", inputs, path

    def _write(
        self,
        step: str,
        subject: Subject,
        name: Name,
        prompts: Sequence[Prompt],
        path: Path,
        place: Place,
        known: Mapping[str, Completion],
    ) -> None:
        """Answer prompts into a file, with the nearest λ's answers as drafts."""
        settings = settings_for(self._recipe, name)
        section = self._recipe.generate
        helps = section.drafts and section.engine == "transformers" and settings.temperature == 0
        near = self._nearest(place) if helps else None
        drafts = {} if near is None else {key: c.text for key, c in self._known(near).items()}
        made_by = {"model": subject.key} | ({} if near is None else {"drafts": near[0][0]})
        made = complete_to_file(
            subject.engine(), prompts, settings, path, made_by, self._tick(step), drafts=drafts, known=known
        )
        self._drafted += [c for c in made if c.key not in known and "accepted" in c.made_by]

    def saved(self) -> float | None:
        """The share of tokens that drafts saved, of all answers that had drafts since it was last asked for."""
        share = share_saved(self._drafted)
        self._drafted.clear()
        return share

    def _nearest(self, place: Place) -> Place | None:
        """Of the models that were asked the same so far in this run, the one with the nearest λ.

        Of a merge with λ by module that is the single λ which it began from. What was asked so far hangs on the recipe
        alone, not on where a run was stopped; so do the drafts.
        """
        (lam, own), split, name = place
        others = [p for p in {**self._keys, **self._parts} if p[1:] == (split, name) and p[0][1] != own]
        return min(others, key=lambda p: (abs(p[0][0] - lam), *p[0]), default=None)

    def _known(self, place: Place) -> dict[str, Completion]:
        """What the model at a λ has answered so far, by key."""
        (_, folder), split, name = place
        whole = self._store.folder / "completions" / folder / f"{name}-{split}.jsonl"
        files = [whole] if place in self._keys else self._parts.get(place, [])
        return {completion.key: completion for path in files for completion in read_jsonl(path, Completion)}

    def _tick(self, step: str) -> Callable[[int, int, int], None]:
        return lambda done, total, tokens: self._store.emit(Event(step, "progress", done, total, "", tokens))


def versions(engine: str) -> list[str]:
    """Versions of the packages that answers of an engine depend on."""
    names = ("torch", "transformers", *(("vllm",) if engine == "vllm" else ()))
    installed = {name for name in names if next(iter(importlib.metadata.Distribution.discover(name=name)), None)}
    return [f"{name} {importlib.metadata.version(name) if name in installed else 'unknown'}" for name in names]


def folder_of(lam: float, modules: Mapping[str, float] | None = None) -> str:
    """A model's folder below `completions/`; one with λ by module has a digest of them for a name."""
    return f"modules-{key_of([lam, dict(modules)])[:12]}" if modules else f"lam-{lam:g}"


def settings_for(recipe: Recipe, name: Name) -> Settings:
    """How a set's responses are drawn."""
    section = recipe.generate
    drawn: Mapping[str, Any] = {"temperature": section.temperature, "top_p": section.top_p, "top_k": section.top_k}
    if name != "task":
        limit = section.safety_max_new_tokens or section.max_new_tokens
        penalty = section.safety_repetition_penalty
        return Settings(max_new_tokens=limit, repetition_penalty=penalty, seed=recipe.seed, **drawn)
    given = {key: getattr(section, f"task_{key}") for key in drawn}
    return Settings(
        max_new_tokens=section.max_new_tokens,
        repetition_penalty=section.task_repetition_penalty,
        seed=recipe.seed,
        samples=section.task_samples,
        **{key: drawn[key] if value is None else value for key, value in given.items()},
    )
