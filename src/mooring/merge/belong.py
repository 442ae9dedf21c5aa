"""Refuse a base and a tuned model that do not belong together."""

from collections.abc import Sequence
from pathlib import Path

from mooring.checkpoint import Adapter, Checkpoint, TensorInfo, open_checkpoint, read_config
from mooring.errors import MismatchError, ModelError
from mooring.merge.values import same

MEND = "name the base that the model was tuned from"

_LOOK = 2**16
"""Entries of a tensor that are compared to tell one model from another."""


def check_named_base(base: Checkpoint, adapter: Adapter) -> None:
    """Hold that the base which an adapter names, where it lies on this machine, has the weights of `base`.

    The first entries of every tensor are compared: no two models have those in common, and a whole look could take
    longer than the merge.
    A base in another type is not compared: its bytes differ with reason.

    Raises:
        MismatchError: It lies here and is another model.
    """
    named = adapter.base_name
    if not named or not Path(named).is_dir() or Path(named).resolve() == base.folder.resolve():
        return
    try:
        other = open_checkpoint(named)
    except ModelError:
        return
    what = f"{adapter.folder}: was tuned from {named}, which is another model than {base.folder}"
    with other:
        for info in base.tensors.values():
            twin = other.tensors.get(info.name)
            if twin is None or twin.shape != info.shape:
                raise MismatchError(what, f"give {named} as the base")
            if twin.dtype != info.dtype:
                return
            ours, theirs = (model.read(info.name, 0, min(info.numel, _LOOK)) for model in (base, other))
            if not same(ours, theirs):
                raise MismatchError(what, f"give {named} as the base")


def check_architecture(base: Path, tuned: Path) -> None:
    """Hold that two whole models are of one architecture, by their configurations.

    Raises:
        ModelError: A configuration cannot be read.
        MismatchError: They differ in kind.
    """
    ours, theirs = read_config(base), read_config(tuned)
    for key in ("model_type", "architectures"):
        if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
            a, b = (", ".join(map(str, v)) if isinstance(v, list) else v for v in (ours[key], theirs[key]))
            raise MismatchError(
                f"{tuned}: its {key} is {b}, where {base} has {a}", "name the base that it was tuned from"
            )


def check_type(
    base: Checkpoint, model: Checkpoint | Adapter, name: str, source: str, info: TensorInfo, decisions: dict[str, str]
) -> None:
    """Hold that both sides are floating-point, or of the same type."""
    if isinstance(model, Adapter):
        return
    other = model.tensors[source].dtype
    if other == info.dtype:
        return
    if not (info.dtype.is_floating_point and other.is_floating_point):
        raise MismatchError(f"{model.folder}: {name} is {other}, where {base.folder} has {info.dtype}", MEND)
    decisions.setdefault(name, f"{other} in the tuned model, {info.dtype} in the base; merged in float32 or better")


def check_vocabulary(
    base: Checkpoint, tuned: Sequence[Checkpoint | Adapter], name: str, shapes: Sequence[tuple[int, ...]]
) -> list[int]:
    """The rows of a tensor in every model, where it is one that has a row for each token.

    It is one where in every model the rows are as many as its configuration says that there are tokens.

    Raises:
        MismatchError: It is not, so that the shapes simply do not match.
    """
    ours = shapes[0]
    for model, shape in zip(tuned, shapes[1:], strict=True):
        fits = bool(ours) and bool(shape) and shape[1:] == ours[1:] and _vocabulary(base) == ours[0]
        if shape == ours or (fits and (isinstance(model, Adapter) or _vocabulary(model) == shape[0])):
            continue
        what = f"{model.folder}: {name} has shape {list(shape)}, where {base.folder} has {list(ours)}"
        raise MismatchError(what, MEND)
    return [shape[0] for shape in shapes]


def _vocabulary(model: Checkpoint | Adapter) -> int | None:
    """How many tokens a configuration speaks of."""
    nested = model.config.get("text_config")
    found = model.config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, dict) else None)
    return found if isinstance(found, int) else None
