"""Which files of a model folder hold its weights: those that transformers would choose, unless they are not there."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mooring.errors import ModelError
from mooring.models.safetensors_file import TensorInfo, check_name, read_header
from mooring.models.torch_file import read_pickled
from mooring.models.trainers import explained

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
_OTHERS = ("pytorch_model_fsdp.bin",)
"""Whole models under names that transformers does not look for: what FSDP writes with FULL_STATE_DICT."""

_FILE_HINT = "fetch the file again"
_MODEL_HINT = "fetch the model again"
_HEADS = ("lm_head.weight", "embed_out.weight")

Read = Callable[[Path], list[TensorInfo]]


class Weights:
    """The tensors of a folder in the order of their bytes, shard by shard, and sentences about how they were found."""

    def __init__(self, folder: Path, config: Mapping[str, Any], read_json: Callable[[Path], dict[str, Any]]) -> None:
        self.folder, self._config, self._read_json = folder, config, read_json
        self.remarks: list[str] = []
        self.tensors = self._find()

    def _say(self, sentence: str) -> None:
        self.remarks.append(f"{self.folder.resolve().name}: {sentence}")

    def _find(self) -> list[TensorInfo]:
        """The tensors in the first format that is present, in the order in which transformers looks for them.

        Raises:
            ModelError: There are none, or not all of them; the error says what is there instead.
        """
        names = sorted(path.name for path in self.folder.iterdir())
        for weights, index, read in ((WEIGHTS, INDEX, read_header), (PICKLED, PICKLED_INDEX, read_pickled)):
            suffix = weights.rpartition(".")[2]
            if weights in names:  # `read` reports a dangling link or a folder
                self._ignored([name for name in names if name == index or _shard(name, suffix)], weights)
                self._ignored_formats(names, suffix, weights)
                return read(self.folder / weights)
            if index in names:
                self._ignored_formats(names, suffix, index)
                return self._by_index(self.folder / index, read)
            if shards := _complete_sets(names, suffix):
                self._ignored_formats(names, suffix, shards[0][0])
                return self._without_index(index, shards, read)
            self._incomplete(names, suffix)
        for name in _OTHERS:
            if name in names:
                self._say(f"the weights are those of {name}")
                return read_pickled(self.folder / name)
        lacks = f"no {WEIGHTS} and no {INDEX}"
        what = f"{self.folder}: has {lacks}"
        hint = "fetch the model's weights, or name the folder that holds them"
        raise explained(self.folder, lacks) or ModelError(what, hint, code="model.no_weights")

    def _ignored(self, names: list[str], chosen: str) -> None:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._say(f"the weights are those of {chosen}, as in transformers; {names[0]}{more} was not read")

    def _ignored_formats(self, names: list[str], suffix: str, chosen: str) -> None:
        others = [name for name in names if name == "consolidated.safetensors"]
        if suffix == "safetensors":
            others += [name for name in names if name in (PICKLED, PICKLED_INDEX)]
        self._ignored(others, chosen)

    def _incomplete(self, names: list[str], suffix: str) -> None:
        """Raise if there are some shards of a model, and no index."""
        for name in names:
            if found := _shard(name, suffix):
                missing = next(
                    k
                    for k in range(1, int(found[3]) + 1)
                    if f"{found[1]}{k:05}-of-{found[3]}" not in {other.removesuffix(f".{suffix}") for other in names}
                )
                file = self.folder / f"{found[1]}{missing:05}-of-{found[3]}.{suffix}"
                raise ModelError(
                    f"{file}: the shard is missing, and so is the index", _MODEL_HINT, code="model.missing_shard"
                )

    def _without_index(self, index: str, sets: list[list[str]], read: Read) -> list[TensorInfo]:
        if len(sets) > 1:
            what = f"{self.folder}: has no {index}, and two sets of shards: {sets[0][0]} … and {sets[1][0]} …"
            raise ModelError(what, "remove the set that does not belong there", code="model.two_sets_of_shards")
        self._say(f"there is no {index}; all {len(sets[0])} shards ({sets[0][0]} …) were read")
        return self._all_of(sets[0], read)

    def _all_of(self, shards: list[str], read: Read) -> list[TensorInfo]:
        """The tensors of all shards; one that is in several is that of the first."""
        found: dict[str, TensorInfo] = {}
        for shard in shards:
            for info in read(self.folder / shard):
                found.setdefault(info.name, info)
        return list(found.values())

    def _by_index(self, index: Path, read: Read) -> list[TensorInfo]:
        """The tensors of a sharded model, by its index."""
        places = self._places(index)
        suffix = index.name.split(".")[1]
        if missing := sorted({shard for shard in places.values() if not os.path.lexists(self.folder / shard)}):
            sets = _complete_sets(sorted(path.name for path in self.folder.iterdir()), suffix)
            infos = self._all_of(sets[0], read) if len(sets) == 1 else []
            if not infos or places.keys() - {info.name for info in infos}:
                file = self.folder / missing[0]
                raise ModelError(f"{file}: the shard is missing", _MODEL_HINT, code="model.missing_shard")
            self._say(f"{index.name} names {missing[0]}, which is not there; all {len(sets[0])} shards were read")
            return infos
        found: dict[str, TensorInfo] = {}
        elsewhere: dict[str, TensorInfo] = {}
        more: list[str] = []
        for shard in sorted(set(places.values())):
            for info in read(self.folder / shard):
                if info.name not in places:  # transformers reads whatever is in the shards
                    more.append(info.name)
                right = places.get(info.name, shard) == shard
                (found if right else elsewhere).setdefault(info.name, info)
        if more:
            self._say(f"{index.name} leaves out {_some(more)}, which the shards hold; it was read, as in transformers")
        if places.keys() - {*found, *elsewhere}:
            for infos in self._unlisted(places.values(), suffix, read):
                elsewhere = {info.name: info for info in infos} | elsewhere
        if moved := sorted(elsewhere.keys() & places.keys() - found.keys()):
            self._say(f"{index.name} names another shard for {_some(moved)} than the one that holds it, which was read")
            found |= {name: elsewhere[name] for name in moved}
        for name in sorted(places.keys() - found.keys()):
            if name.endswith(_HEADS) and _may_tie(self._config):
                self._say(f"{index.name} lists {name}, which the shards do not hold: it is tied to the embedding")
                continue
            what = f"{self.folder / places[name]}: {name} is in the index but not in the file"
            raise ModelError(what, _MODEL_HINT, code="model.index_mismatch")
        return list(found.values())

    def _unlisted(self, listed: Iterable[str], suffix: str, read: Read) -> Iterator[list[TensorInfo]]:
        """The tensors of each shard that an index does not list, if all shards of one set are there."""
        sets = _complete_sets(sorted(path.name for path in self.folder.iterdir()), suffix)
        if len(sets) == 1:
            yield from (read(self.folder / shard) for shard in sorted({*sets[0]} - {*listed}))

    def _places(self, index: Path) -> dict[str, str]:
        """Tensor to shard, checked."""
        suffix = index.name.split(".")[1]
        places = self._read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
            raise ModelError(f"{index}: has no weight_map from names to files", _FILE_HINT, code="model.bad_index")
        try:
            for name in places:
                check_name(name)
        except ValueError as error:
            raise ModelError(f"{index}: is corrupt: {error}", _FILE_HINT, code="model.bad_index") from None
        for shard in dict.fromkeys(places.values()):
            # a path could lead anywhere on the disk, and another suffix could overwrite a side file of the output
            if Path(shard).name != shard or not shard.isprintable() or not shard.endswith(f".{suffix}"):
                what = f"{index}: names {shard[:200]!a}, which is not a .{suffix} file of this folder"
                raise ModelError(what, _MODEL_HINT, code="model.bad_index")
        return places


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def _shard(name: str, suffix: str) -> re.Match[str] | None:
    """The parts of a shard's name: prefix, number, how many."""
    return re.fullmatch(rf"((?:pytorch_)?model-)(\d{{5}})-of-(\d{{5}})\.{suffix}", name)


def _complete_sets(names: list[str], suffix: str) -> list[list[str]]:
    """The complete sets of shards: each has all numbers from 1 to how many there are."""
    sets: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if found := _shard(name, suffix):
            sets.setdefault((found[1], found[3]), []).append(name)
    return [found for (_, count), found in sets.items() if len(found) == int(count)]


def _may_tie(config: Mapping[str, Any]) -> bool:
    """Whether a configuration does not say that head and embedding are separate."""
    text = config.get("text_config")
    nested = text if isinstance(text, dict) else {}
    return config.get("tie_word_embeddings", nested.get("tie_word_embeddings")) is not False
