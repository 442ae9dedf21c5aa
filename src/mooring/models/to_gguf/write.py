"""Write a model, or a LoRA adapter, as a GGUF file with a Modelfile for Ollama beside it."""

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mooring.errors import ModelError, OutputError
from mooring.events import Event, OnEvent, ignore
from mooring.export import Record
from mooring.files import PARTIAL, atomic_text, explained, need_room
from mooring.models.checkpoint import Checkpoint, TensorFiles, open_checkpoint
from mooring.models.classes import loading
from mooring.models.lora import Adapter, open_adapter
from mooring.models.lora_changes import Change
from mooring.models.to_gguf import architectures, tokenizer
from mooring.models.to_gguf.architectures import Architecture, Floats, GgufType
from mooring.models.to_gguf.modelfile import adapter_modelfile, model_modelfile, one_word
from mooring.models.to_gguf.tensors import Names, Rows, Target, fits, head_rows, plain_name, targets
from mooring.quiet import quiet

MODELFILE = "Modelfile"
_ROOM = 2**26
"""Bytes for metadata."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exported(Record):
    """A GGUF file that was written.

    Attributes:
        file: The file.
        modelfile: What `ollama create NAME -f` takes, beside it.
        type: How matrices are stored.
        architecture: llama.cpp's name of the architecture.
        tensors: How many tensors it has.
        left_out: The model's tensors that are not in it: parts other than the language model, such as a vision tower.
    """

    file: Path
    modelfile: Path
    type: str
    architecture: str
    tensors: int
    left_out: tuple[str, ...] = ()

    def moved_to(self, folder: Path) -> "Exported":
        """The same after its files were moved to another folder."""
        return dataclasses.replace(self, file=folder / self.file.name, modelfile=folder / self.modelfile.name)


@dataclasses.dataclass(frozen=True, slots=True)
class _Model:
    """A model that can be written."""

    checkpoint: Checkpoint
    architecture: Architecture
    metadata: Mapping[str, Any]
    targets: Sequence[Target]
    extra: Mapping[str, Floats]
    left_out: Sequence[str]
    tokenizer: Any


def check_model(folder: Path) -> None:
    """Check that a model can be written as GGUF; reads no weights.

    Raises:
        ModelError: llama.cpp does not have its architecture or its tokenizer.
    """
    _open(folder).checkpoint.close()


def write_model(
    folder: Path, out: Path, kind: GgufType, *, name: str = "", on_event: OnEvent | None = None
) -> Exported:
    """Write a model folder as a GGUF file with its tokenizer, chat template and metadata, and a Modelfile.

    Matrices are stored as `kind`; vectors, and the router of a mixture, as float32, as llama.cpp's converter does.

    Args:
        folder: The model.
        out: An existing folder.
        kind: How matrices are stored.
        name: The model's name in the metadata and in the file's name; defaults to the folder's.
        on_event: Receives the progress, in bytes.

    Raises:
        ModelError: llama.cpp does not have its architecture or its tokenizer, or a value does not fit the type.
        OutputError: The file exists, or the disk is full.
    """
    name = name or folder.resolve().name
    model = _open(folder)
    with model.checkpoint:
        values = {
            "general.type": "model",
            "general.name": name,
            **{f"{model.architecture.name}.{key}": value for key, value in model.metadata.items()},
            **{f"tokenizer.{key}": value for key, value in tokenizer.metadata(model.tokenizer, _rows(model)).items()},
        }
        file = out / f"{one_word(name)}-{kind.upper()}.gguf"
        _write(file, model.architecture, values, model.targets, model.extra, model.checkpoint, kind, on_event or ignore)
    text = model_modelfile(file.name, model.tokenizer)
    atomic_text(out / MODELFILE, text)
    return Exported(
        file=file,
        modelfile=out / MODELFILE,
        type=kind,
        architecture=model.architecture.name,
        tensors=len(model.targets) + len(model.extra),
        left_out=tuple(model.left_out),
    )


def _open(folder: Path) -> _Model:
    import transformers

    found, config = architectures.find(folder)
    checkpoint = open_checkpoint(folder)
    try:
        made, left = targets(checkpoint, found, config, architectures.head_size(config))
        with quiet("transformers"), loading(folder, "transformers", "its tokenizer"):
            tokens = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        values = architectures.metadata(found, config)
        model = _Model(checkpoint, found, values, made, architectures.extra_tensors(config), left, tokens)
        tokenizer.metadata(tokens, _rows(model))
        return model
    except BaseException:
        checkpoint.close()
        raise


def _rows(model: _Model) -> int:
    """How many rows the embedding has."""
    for target in model.targets:
        if target.name == "token_embd.weight":
            return target.shape[0]
    what = f"{model.checkpoint.folder}: has no embedding"
    raise ModelError(what, "fetch or save the model again, whole", code="model.missing_tensor")


# --- adapters ---------------------------------------------------------------------------------------------------------


def check_adapter(folder: Path, base: Path) -> None:
    """Check that an adapter can be written as GGUF.

    Raises:
        ModelError: llama.cpp does not have the base's architecture, or applies only a part of the adapter.
    """
    found, config = architectures.find(base)
    with open_adapter(folder) as adapter:
        _adapter_targets(adapter, found, config)


def write_adapter(
    folder: Path, base: Path, out: Path, kind: GgufType, *, name: str = "", on_event: OnEvent | None = None
) -> Exported:
    """Write a LoRA adapter as a GGUF adapter, for llama.cpp's `--lora`, and a Modelfile.

    A is stored as `kind` if its rows allow it, and B in float16 at least, since quantizing a rank's few columns saves
    nothing.

    Args:
        folder: The adapter.
        base: The model that it was tuned from.
        out: An existing folder.
        kind: How factors are stored; `q8_0` becomes `f16`.
        name: Its name in the metadata and in the file's name; defaults to the folder's.
        on_event: Receives the progress, in bytes.

    Raises:
        ModelError: llama.cpp does not have the base's architecture, or applies only a part of the adapter.
        OutputError: The file exists, or the disk is full.
    """
    name = name or folder.resolve().name
    kind = "f16" if kind == "q8_0" else kind
    found, config = architectures.find(base)
    with open_adapter(folder) as adapter:
        made, alpha = _adapter_targets(adapter, found, config)
        values = {
            "general.type": "adapter",
            "general.name": name,
            "adapter.type": "lora",
            "adapter.lora.alpha": alpha,
        }
        file = out / f"{one_word(name)}-{kind.upper()}.gguf"
        _write(file, found, values, made, {}, adapter, kind, on_event or ignore)
    atomic_text(out / MODELFILE, adapter_modelfile(file.name, base))
    return Exported(file=file, modelfile=out / MODELFILE, type=kind, architecture=found.name, tensors=len(made))


def _adapter_targets(adapter: Adapter, found: Architecture, config: Any) -> tuple[list[Target], float]:
    """The factors of an adapter, and the α that llama.cpp divides by each rank."""
    names = Names(found, int(config.num_hidden_layers))
    size, made = architectures.head_size(config), []
    scales = set()
    for name, change in adapter.changes.items():
        plain = plain_name(name)
        target = names.of(plain) if plain else None
        plain_product = dataclasses.replace(change, a=None, b=None, rank=0, scale=1.0) == Change()
        if target is None or not plain_product or change.a is None or change.b is None:
            what = f"{adapter.folder}: a GGUF adapter cannot hold its change of {name}"
            raise ModelError(what, "merge it, and export the merged model", code="model.gguf_adapter")
        a, b = adapter.tensors[change.a], adapter.tensors[change.b]
        scales.add(change.scale * a.shape[0])
        heads = head_rows(found, str(plain), size)
        made.append(Target(f"{target}.lora_a", a.shape, (Rows(a.name, 0, a.shape[0]),)))
        made.append(Target(f"{target}.lora_b", b.shape, (Rows(b.name, 0, b.shape[0]),), interleaved=heads))
    if len(scales) > 1:
        what = f"{adapter.folder}: its modules have different α, and a GGUF adapter holds one"
        raise ModelError(what, "merge it, and export the merged model", code="model.gguf_adapter")
    return made, float(scales.pop())


# --- the file ---------------------------------------------------------------------------------------------------------


def _write(
    file: Path,
    found: Architecture,
    values: Mapping[str, Any],
    made: Sequence[Target],
    extra: Mapping[str, Floats],
    files: TensorFiles,
    kind: GgufType,
    on_event: OnEvent,
) -> None:
    """Write a GGUF file in one step: under another name beside it, then renamed."""
    import gguf

    kinds = {target.name: _kind(target, kind) for target in made}
    sizes = {target.name: _nbytes(target.shape, kinds[target.name]) for target in made}
    total = sum(sizes.values())
    need_room(file.parent, total + _ROOM)
    if file.exists():
        raise OutputError(f"{file}: exists already", "move it away, or name another folder", code="output.not_empty")
    with _scratch(file) as scratch:
        writer = gguf.GGUFWriter(scratch, found.name)
        writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}"))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in values.items():
            _add(writer, key, value)
        for name, array in extra.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        for target in made:
            none = np.dtype(np.float32)
            writer.add_tensor_info(target.name, target.shape, none, sizes[target.name], raw_dtype=kinds[target.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, stream = 0, writer.fout[0]
        writer.write_padding(stream, stream.tell())
        for array in extra.values():
            stream.write(array.tobytes())
            writer.write_padding(stream, array.nbytes)
        for target in made:
            for block in target.blocks(files):
                if kinds[target.name] == gguf.GGMLQuantizationType.F16 and not fits(block):
                    what = f"{files.folder}: a value of {target.name} is too large for float16"  # type: ignore[attr-defined]
                    raise ModelError(what, "export it as bf16", code="model.gguf_overflow")
                data = gguf.quantize(np.ascontiguousarray(block), kinds[target.name]).tobytes()
                stream.write(data)
                done += len(data)
            writer.write_padding(stream, sizes[target.name])
            on_event(Event(step="gguf", kind="progress", label="write GGUF", done=done, total=total, unit="bytes"))
        writer.close()


@contextlib.contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A file beside another one that takes its place at the end of the block."""
    with explained(file):
        handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=file.parent)
        os.close(handle)
        try:
            yield Path(name)
            Path(name).chmod(0o644)
            os.replace(name, file)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _kind(target: Target, kind: GgufType) -> Any:
    """How a tensor is stored: vectors and routers in float32; rows that are no whole blocks in float16."""
    import gguf

    types = gguf.GGMLQuantizationType
    if len(target.shape) == 1 or "ffn_gate_inp" in target.name:
        return types.F32
    if kind == "q8_0" and target.shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0]:
        return types.F16
    return types[kind.upper()]


def _nbytes(shape: Sequence[int], kind: Any) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(math.prod(shape) // block * size)


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a value with the type that llama.cpp reads."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif key.endswith("precompiled_charsmap"):
        writer.add_precompiled_charsmap(bytes(value))
    else:
        writer.add_array(key, value)
