"""Where a tensor is in a model, read from its name: the stack of layers, the layer, the module, the depth."""

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BEFORE = re.compile(r"(?:^|[._])(?:embed(?!_out)|embeddings?|emb|wte|wpe)(?:[._]|$)|^shared\.")


def layer(name: str) -> tuple[str, int] | None:
    """The stack that a tensor is in and its layer's number there; None outside the layers.

    `model.layers.3.experts.7.up.weight` is in layer 3 of `model.layers`; the first number counts.
    """
    match = _LAYER.search(name)
    return (name[: match.start(1) - 1], int(match[1])) if match else None


def module(name: str) -> tuple[str, int, str] | None:
    """(stack, layer, module) of a tensor: `model.layers`, 3, `mlp.up_proj.weight`; None outside the layers.

    The experts of a layer count as one module, `mlp.experts.*.up_proj.weight`.
    """
    place = layer(name)
    if place is None:
        return None
    stack, number = place
    return stack, number, re.sub(r"(?<=\.)\d+(?=\.)", "*", name[len(stack) + 1 :].partition(".")[2])


def layer_labels(names: Iterable[str]) -> dict[str, str]:
    """A label for the layer of every tensor in one: `3`, or `model.layers.3` in a model with several stacks."""
    places = {name: place for name in names if (place := layer(name)) is not None}
    several = len({stack for stack, _ in places.values()}) > 1
    return {name: f"{stack}.{number}" if several else str(number) for name, (stack, number) in places.items()}


def depths(names: Iterable[str]) -> dict[str, float]:
    """The relative depth of every tensor: 0 in the first layer, 1 in the last, by the numbers in the names.

    Each stack of layers (encoder, decoder, vision tower) is counted separately; the only layer of a stack has depth 1,
    as in mergekit. Outside the layers, embeddings have depth 0 and all else (the last norm, the head) 1; mergekit gives
    both 0.
    """
    places = {name: layer(name) for name in names}
    last: dict[str, int] = {}
    for place in places.values():
        if place:
            last[place[0]] = max(place[1], last.get(place[0], 0))

    def depth(name: str, place: tuple[str, int] | None) -> float:
        if place is None:
            return 0.0 if _BEFORE.search(name) else 1.0
        return place[1] / last[place[0]] if last[place[0]] else 1.0

    return {name: depth(name, place) for name, place in places.items()}
