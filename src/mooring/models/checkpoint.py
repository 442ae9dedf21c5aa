"""Model folders: open one, read its tensors a slice at a time, and write one in the layout of another."""

import contextlib
import json
import math
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mooring import bounded
from mooring.errors import ModelError
from mooring.files import explained
from mooring.models.quantization import (
    QuantizedTensor,
    method_of,
    quantized_tensors,
    runtime_scales,
    settings_of,
    without_settings,
)
from mooring.models.safetensors_file import TensorInfo, lay_out, open_regular, unreadable
from mooring.models.trainers import explained as explained_folder
from mooring.models.weights import INDEX, Weights

MANIFEST = "mooring.json"
"""How a merged model was made; never copied from an input."""

_LARGEST_SIDE_FILE = 256 * 2**20
"""Bytes (Gemma's tokenizer.json takes 33 MiB)."""
_MOST_SIDE_FILES = 512 * 2**20
"""Bytes of all side files of a model together; a sparse file takes none on the disk before it is copied."""
_NO_SIDE_FILE = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".ot", ".npz"}
_LEFT_OUT = (
    "readme",
    "adapter_",
    "training_args",
    "trainer_state",
    "optimizer",
    "scheduler",
    "rng_state",
    "eval_",
    "modelfile",
)

_CACHE = 64 * 2**20
"""Bytes of stored tensors that are kept between reads of a tensor that is stored transposed."""
_FEWEST_CACHED = 4
"""The parts of one tensor, kept even if they are larger."""

_FOLDER_HINT = "name a folder with config.json and model.safetensors"
_FILE_HINT = "fetch the file again"
_MODEL_HINT = "fetch the model again"
_QUANTIZED_HINT = "name the model as it was before quantization"


class _OpenFiles:
    """Descriptors of files, closed together."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            for handle in self._handles.values():
                with contextlib.suppress(OSError):
                    os.close(handle)
            self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorFiles(_OpenFiles):
    """Tensors in files, read by position; any number of threads may read at once. A read after `close` reopens them.

    Args:
        infos: The tensors and their places.
    """

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        super().__init__()
        self.tensors: Mapping[str, TensorInfo] = {info.name: info for info in infos}

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a tensor, flattened, in its storage type.

        Args:
            name: The tensor.
            start: First element.
            stop: One past the last; defaults to the end of the tensor.
            out: A contiguous uint8 CPU buffer to read into, at least as large as the slice; the result is a view of it.

        Raises:
            ModelError: The file ends before the slice does, or cannot be read.
        """
        info = self.tensors[name]
        stop = info.numel if stop is None else stop
        if not 0 <= start <= stop <= info.numel:
            raise ValueError(f"{name}: no elements [{start}, {stop}) in {info.numel}")
        size = info.dtype.itemsize
        count = (stop - start) * size
        buffer = torch.empty(count, dtype=torch.uint8) if out is None else out[:count]
        rest = buffer.numpy().data
        position = info.offset + start * size
        try:
            handle = self._handles.get(info.file) or self._open(info.file)
            while rest:
                got = os.preadv(handle, (rest,), position)
                if got == 0:
                    raise ModelError(f"{info.file}: ends within {name}", _FILE_HINT, code="model.truncated")
                rest = rest[got:]
                position += got
        except OSError as error:
            raise unreadable(info.file, error) from None
        return buffer.view(info.dtype)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, in its shape."""
        return self.read(name).view(self.tensors[name].shape)

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._handles:
                self._handles[file] = open_regular(file)
            return self._handles[file]

    def __del__(self) -> None:
        self.close()


class StoredTensors(TensorFiles):
    """Tensors in files, of which some are kept in memory between reads."""

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self._cache: OrderedDict[tuple[str, int, int | None], Tensor] = OrderedDict()
        self._lock_for_cache = threading.Lock()

    def cached(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `read`, but kept for the next call with the same arguments, in bounded memory; not to be changed."""
        key = (name, start, stop)
        with self._lock_for_cache:
            if key not in self._cache:
                self._cache[key] = self.read(name, start, stop)
                while len(self._cache) > _FEWEST_CACHED and sum(t.nbytes for t in self._cache.values()) > _CACHE:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]

    def close(self) -> None:
        """Close the files, and free what is kept."""
        super().close()
        self._cache.clear()


class Checkpoint(TensorFiles):
    """A whole model in a folder. Quantized tensors are presented, and read, as the tensors that they stand for.

    Attributes:
        folder: The folder.
        config: Its `config.json`, without what it says about quantization.
        tensors: Name to place, shard by shard, in the order of the bytes. A quantized tensor has the place of its
            codes, and the type, shape and size of its values.
        stored_config: Its `config.json`.
        stored: The tensors as they are stored.
        quantized: The tensors that are quantized, by name.
        quantization: What `config.json` says about quantization.
        remarks: Sentences about what was decided about the folder as it was opened.
    """

    def __init__(self, folder: Path, config: dict[str, Any], infos: Sequence[TensorInfo]) -> None:
        super().__init__(infos)
        self.folder = folder
        self.config = config
        self.stored_config = config
        self.stored = StoredTensors(infos)
        self.quantized: Mapping[str, QuantizedTensor] = {}
        self.quantization: Mapping[str, Any] = {}
        self.remarks: list[str] = []

    def dequantize(self) -> None:
        """Present quantized tensors as the tensors that they stand for.

        Raises:
            ModelError: The parts of a tensor do not fit each other, or it is of an unsupported format.
        """
        method = method_of(self.config)
        self.quantized = quantized_tensors(self.stored, self.config)
        self.quantization = settings_of(self.config) or {}
        self.config = without_settings(self.config)
        if not self.quantized:
            if self.quantization:
                self._check_left_over(method)
            return
        formats = ", ".join(sorted({tensor.format for tensor in self.quantized.values()}))
        count = f"{len(self.quantized)} tensors" if len(self.quantized) > 1 else "a tensor"
        self.remarks.append(f"{self.folder.resolve().name}: {count} of {formats} dequantized")
        parts = {part: tensor for tensor in self.quantized.values() for part in tensor.parts}
        codes = {tensor.parts[0] for tensor in self.quantized.values()}
        scales = set(runtime_scales(self.stored))
        infos: dict[str, TensorInfo] = {}
        for info in self.stored.tensors.values():
            if info.name in codes:
                tensor = parts[info.name]
                size = math.prod(tensor.shape) * tensor.dtype.itemsize
                infos[tensor.name] = TensorInfo(tensor.name, tensor.dtype, tensor.shape, info.file, info.offset, size)
            elif info.name not in parts and info.name not in scales:
                infos[info.name] = info
        self.tensors = infos

    def _check_left_over(self, method: str) -> None:
        """Raise unless all matrices have 16 bits or more, although `config.json` says that they are quantized."""
        named = f" ({method})" if method else ""
        for info in self.tensors.values():
            if len(info.shape) > 1 and (not info.dtype.is_floating_point or info.dtype.itemsize < 2):
                what = f"{self.folder}: is quantized{named or ' (unknown method)'}, as {info.name} shows"
                raise ModelError(what, _QUANTIZED_HINT, code="model.quantized")
        said = f"{self.folder.resolve().name}: config.json says that the weights are quantized{named}"
        self.remarks.append(f"{said}, but all have 16 bits or more; what it says was left out")

    def read(self, name: str, start: int = 0, stop: int | None = None, *, out: Tensor | None = None) -> Tensor:
        """See `TensorFiles.read`; a quantized tensor's values have the type that they are computed in."""
        tensor = self.quantized.get(name)
        if tensor is None:
            return super().read(name, start, stop, out=out)
        numel = math.prod(tensor.shape)
        stop = numel if stop is None else stop
        if not 0 <= start <= stop <= numel:
            raise ValueError(f"{name}: no elements [{start}, {stop}) in {numel}")
        size = (stop - start) * tensor.dtype.itemsize
        values = (torch.empty(size, dtype=torch.uint8) if out is None else out[:size]).view(tensor.dtype)
        tensor.read(self.stored, start, stop, values)
        return values

    def close(self) -> None:
        """Close the files."""
        super().close()
        self.stored.close()

    @property
    def shards(self) -> dict[str, list[TensorInfo]]:
        """File name to the tensors in it."""
        groups: dict[str, list[TensorInfo]] = {}
        for info in self.tensors.values():
            groups.setdefault(info.file.name, []).append(info)
        return groups

    @property
    def output_shards(self) -> dict[str, str]:
        """File name to the name of a safetensors file for the same tensors, in the order of `shards`.

        `pytorch_model-00001-of-00002.bin` becomes `model-00001-of-00002.safetensors`; safetensors keep their names.
        """
        shards = self.shards
        names = {name: _as_safetensors(name) for name in shards}
        if len(set(names.values())) < len(names):  # an index may name anything
            names = {name: f"model-{k:05}-of-{len(names):05}.safetensors" for k, name in enumerate(shards, 1)}
        return names

    @property
    def nbytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(info.nbytes for info in self.tensors.values())


def _as_safetensors(name: str) -> str:
    if not name.endswith(".bin"):
        return name
    return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def refuse_quantized(model: Checkpoint) -> None:
    """Raise for a model that an engine would load with codes and scales, so that merged weights have no place in it.

    Raises:
        ModelError: It is quantized, or its `config.json` says so (`model.quantized`).
    """
    if model.quantization or model.quantized:
        hint = "write it in 16 bits first: mooring merge BASE TUNED --lam 0 --out base-16bit"
        raise ModelError(f"{model.folder}: is quantized", hint, code="model.quantized")


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (Path(folder) / "adapter_config.json").is_file()


def open_checkpoint(folder: str | Path, *, as_stored: bool = False) -> Checkpoint:
    """Open a whole model: `config.json` with `model.safetensors`, or shards and their index.

    Without safetensors, `pytorch_model.bin` or its shards are opened; no pickled code is run. Only headers are read,
    and a few small tensors that describe quantization. Close the checkpoint when done, or use it in a `with` statement.

    Args:
        folder: The folder.
        as_stored: Present quantized tensors as they are stored, in codes and scales.

    Raises:
        ModelError: The folder is missing, empty, an adapter, quantized in an unsupported way or not a model, or a file
            in it is corrupt.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = Weights(folder, config, lambda index: read_json(index, bounded.INDEX))
    checkpoint = Checkpoint(folder, config, weights.tensors)
    checkpoint.remarks += weights.remarks
    if not checkpoint.tensors:
        raise ModelError(f"{folder}: holds no tensors", "name a folder with a model's weights", code="model.empty")
    if not as_stored:
        checkpoint.dequantize()
    if not as_stored and (info := _quantized(checkpoint.tensors)):
        what = f"{info.file}: is quantized, as {info.name} shows"
        raise ModelError(what, _QUANTIZED_HINT, code="model.quantized")
    return checkpoint


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        ModelError: The folder is missing, empty or not a model, or the file is not JSON, or names its type or its
            classes by something else than text.
    """
    if not folder.is_dir():
        what = "is a file, not a model folder" if folder.exists() else "there is no such folder"
        raise ModelError(f"{folder}: {what}", _FOLDER_HINT, code="model.not_found")
    if (file := folder / "config.json").is_file():
        config = read_json(file)
        if not isinstance(config.get("model_type") or "", str):
            raise ModelError(f"{file}: `model_type` is not a name", _FILE_HINT, code="model.bad_config")
        names = config.get("architectures") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{file}: `architectures` is not a list of names", _FILE_HINT, code="model.bad_config")
        return config
    if not any(folder.iterdir()):
        raise ModelError(f"{folder}: the folder is empty", _FOLDER_HINT, code="model.empty")
    if is_adapter(folder):
        what = f"{folder}: is a LoRA adapter, not a whole model"
        raise ModelError(what, "name the model it tunes", code="model.adapter_not_whole")
    what = f"{folder}: is not a model: it has no config.json"
    hint = "name the folder with config.json and the weights"
    raise explained_folder(folder, "no config.json") or ModelError(what, hint, code="model.no_config")


def read_json(file: Path, limit: bounded.Limit = bounded.CONFIG) -> dict[str, Any]:
    """A mapping from a JSON file.

    Raises:
        ModelError: It cannot be read, is larger than its kind ever is, or is not a mapping.
    """
    try:
        data = bounded.parse_json(bounded.read_bytes(file, limit), limit)
    except OSError as error:
        raise unreadable(file, error) from None
    except bounded.UnusableError as error:
        raise ModelError(f"{file}: {error}", "name the file that belongs there", code="model.bad_json") from None
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ModelError(f"{file}{line}: is not JSON", _FILE_HINT, code="model.bad_json") from None
    if not isinstance(data, dict):
        raise ModelError(f"{file}: is not a mapping of keys to values", _FILE_HINT, code="model.bad_json")
    return data


def read_text(file: Path) -> str:
    """A text file of a model folder, such as a chat template.

    Raises:
        ModelError: It cannot be read, is not UTF-8, or is far too large.
    """
    try:
        return bounded.read_bytes(file, bounded.CONFIG).decode("utf-8")
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        reason = error if isinstance(error, bounded.UnusableError) else "is not text in UTF-8"
        raise ModelError(f"{file}: {reason}", _FILE_HINT, code="model.bad_text") from None


_SCALES = ("qzeros", "scales", "SCB", "weight_scale", "weight_scale_inv", "weight_zero_point")
"""What GPTQ, AWQ, bitsandbytes, compressed-tensors and block-wise fp8 store with a module's quantized values."""


def _quantized(tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """The first tensor that shows that a model is quantized, if any: quantized values, or scales stored with them.

    A name alone proves nothing: `weight_scale` may be a parameter, and integers may be a buffer.
    """
    return next((info for info in tensors.values() if _shows_quantization(info, tensors)), None)


def _shows_quantization(info: TensorInfo, tensors: Mapping[str, TensorInfo]) -> bool:
    stem, dot, part = info.name.rpartition(".")
    if part in ("qweight", "weight_packed"):
        return _holds_codes(info)
    values: list[str] = []
    if part in _SCALES:
        values = [f"{stem}{dot}{name}" for name in ("qweight", "weight_packed", "weight")]
    elif part == "absmax":  # bitsandbytes: `fc.weight.absmax` with `fc.weight`
        values = [stem]
    elif part.endswith("_scales"):  # MXFP4: `experts.up_proj_scales` with `experts.up_proj_blocks`
        values = [info.name.removesuffix("scales") + "blocks"]
    return any(name in tensors and _holds_codes(tensors[name]) for name in values)


def _holds_codes(info: TensorInfo) -> bool:
    """Whether a tensor is of a type that quantized values have."""
    integer = not info.dtype.is_floating_point and not info.dtype.is_complex and info.dtype != torch.bool
    return integer or info.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)


class Writer(_OpenFiles):
    """Files of tensors, allocated at once and filled by position; any number of threads may write at once.

    Args:
        folder: An existing folder.
        shards: File name to (name, dtype, shape) of its tensors, in the order of their bytes. With more than one
            file, an index is written too.
        existing: The files were made by another process, and are filled by several.

    Raises:
        OutputError: The disk is full, or may not be written.
    """

    def __init__(
        self,
        folder: Path,
        shards: Mapping[str, Sequence[tuple[str, torch.dtype, tuple[int, ...]]]],
        *,
        existing: bool = False,
    ) -> None:
        super().__init__()
        self.folder, self._existing = folder, existing
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with explained(folder):
                for name, tensors in shards.items():
                    self._begin(folder / name, tensors)
                if len(shards) > 1 and not existing:
                    self._write_index()
        except BaseException:
            self.close()
            raise

    def _begin(self, file: Path, tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        """Create a file at its full size, so that a full disk is noticed now."""
        head, infos = lay_out(file, tensors)
        make = 0 if self._existing else os.O_CREAT | os.O_EXCL
        self._handles[file] = os.open(file, os.O_WRONLY | os.O_CLOEXEC | make, 0o644)
        if not self._existing:
            os.posix_fallocate(self._handles[file], 0, len(head) + sum(info.nbytes for info in infos))
            _write_all(self._handles[file], memoryview(head), 0)
        self.tensors.update((info.name, info) for info in infos)

    def _write_index(self) -> None:
        places = {name: info.file.name for name, info in sorted(self.tensors.items())}
        total = sum(info.nbytes for info in self.tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, ensure_ascii=False)
        (self.folder / INDEX).write_text(text + "\n", encoding="utf-8")

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write values to a tensor's elements from `start` on.

        Args:
            name: The tensor.
            start: First element.
            values: Of the tensor's type, contiguous, on the CPU.

        Raises:
            OutputError: The disk is full.
        """
        info = self.tensors[name]
        if values.dtype != info.dtype or start + values.numel() > info.numel:
            raise ValueError(f"{name}: {values.numel()} × {values.dtype} from {start} do not fit {info}")
        data = values.reshape(-1).view(torch.uint8).numpy().data
        with explained(info.file):
            _write_all(self._handles[info.file], data, info.offset + start * info.dtype.itemsize)


def _write_all(handle: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], offset + done)


def side_files(folder: Path, *, links_away: bool = False) -> Iterator[Path]:
    """The files of a model folder that belong to the model but hold no weights, relative to the folder.

    Config, generation config, tokenizer, chat templates, preprocessor, the model's own code and licence; not the
    model card (it describes another model), training state, adapters, or hidden files.

    Links to files outside the folder and the hub's cache are left out; with `links_away` only those are listed.

    Raises:
        ModelError: Together they are far larger than those of any model (`model.large_side_files`).
    """
    size = 0
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")]):
        name = path.name.lower()
        if name.startswith((".", *_LEFT_OUT)) or name == MANIFEST or name.endswith(".index.json"):
            continue
        if path.suffix.lower() in _NO_SIDE_FILE or not path.is_file() or path.stat().st_size > _LARGEST_SIDE_FILE:
            continue
        inside = belongs(path, folder)
        size += path.stat().st_size if inside else 0
        if size > _MOST_SIDE_FILES:
            what = f"{folder}: its files besides the weights take more than {_MOST_SIDE_FILES // 2**20} MiB"
            hint = f"move those away that are not part of the model, such as {path.name}"
            raise ModelError(what, hint, code="model.large_side_files")
        if inside is not links_away:
            yield path.relative_to(folder)


def belongs(path: Path, folder: Path) -> bool:
    """Whether a file lies in a model's folder, or in the hub's cache that the folder is part of, after following links.

    A link to another place could put any file of this machine into a model that is then published.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    real, root = path.resolve(), folder.resolve()
    places = [root, Path(HF_HUB_CACHE).resolve()]
    if root.parent.name == "snapshots":  # a cache elsewhere: models--owner--name/snapshots/commit, and blobs
        places.append(root.parents[1] / "blobs")
    return any(real.is_relative_to(place) for place in places)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy what `side_files` lists.

    Raises:
        OutputError: The disk is full, or may not be written.
    """
    with explained(target):
        for name in side_files(source):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
