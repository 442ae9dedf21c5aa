"""Digests of models: SHA-256 of the files, or a fast digest of each tensor."""

import functools
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from mooring.errors import ModelError
from mooring.files import sha256
from mooring.models.checkpoint import read_json
from mooring.models.safetensors_file import unreadable

_CONFIGS = ("config.json", "adapter_config.json")
_TEMPLATES = "additional_chat_templates"
"""The subfolder that transformers reads."""
_TEXT = (
    *("tokenizer*", "*.model", "*.tiktoken", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template*", f"{_TEMPLATES}/*", "generation_config.json"),
)
"""Patterns of the files that `text_digest` is made of."""


def file_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every weight file and configuration of a model folder, by file name, in the order of names.

    For a weight file it equals what the hub lists; for a configuration it covers the values except paths. An unchanged
    file is hashed once per process.

    Raises:
        ModelError: The folder is missing, or has no weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder", "name a model folder", code="model.not_found")
    weights = _weight_files(folder)
    if not weights:
        raise ModelError(f"{folder}: has no weights", "name a model folder", code="model.no_weights")
    files = sorted([*weights, *(folder / name for name in _CONFIGS if (folder / name).is_file())])
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            return dict(zip((path.name for path in files), pool.map(_file_digest, files), strict=True))
    except OSError as error:
        raise unreadable(error.filename, error) from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers or PEFT would load: the first kind that is present."""
    patterns = (
        "adapter_model.safetensors",
        "adapter_model.bin",
        "model.safetensors",
        "model-*.safetensors",
        "*.safetensors",
        "pytorch_model*.bin",
    )
    return next((found for found in (list(folder.glob(pattern)) for pattern in patterns) if found), [])


def whole_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder, by its path in the folder; subfolders that no loader reads are left out.

    Raises:
        ModelError: A file cannot be read.
    """
    folder = Path(folder)
    files = [path for path in (*folder.glob("*"), *folder.glob(f"{_TEMPLATES}/*")) if path.is_file()]
    files = sorted(path for path in files if not path.name.startswith("."))
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            found = pool.map(_bytes_digest, files)
            return {path.relative_to(folder).as_posix(): digest for path, digest in zip(files, found, strict=True)}
    except OSError as error:
        raise unreadable(error.filename, error) from None


def model_digest(folder: str | Path) -> str:
    """One digest for a model folder: equal for equal weights and configuration, independent of the folder's path.

    Raises:
        ModelError: As `file_digests`.
    """
    return combine(file_digests(folder))


def text_digest(folder: str | Path) -> str:
    """One digest of the files that define a model's tokenizer, chat template and generation settings.

    Raises:
        ModelError: A file cannot be read.
    """
    folder = Path(folder)
    files = sorted({path for pattern in _TEXT for path in folder.glob(pattern) if path.is_file()})
    try:
        return combine({path.relative_to(folder).as_posix(): sha256(path) for path in files})
    except OSError as error:
        raise unreadable(error.filename, error) from None


def combine(digests: Mapping[str, str]) -> str:
    """One digest from `file_digests`: SHA-256 of the lines that `sha256sum *` prints."""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(digests.items()))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _file_digest(path: Path) -> str:
    if path.suffix == ".json":
        return _config_digest(path)
    return _bytes_digest(path)


def _bytes_digest(path: Path) -> str:
    stat = path.stat()
    return _remembered(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _config_digest(path: Path) -> str:
    """Digest of a configuration without paths, and with sets sorted, which PEFT writes in any order."""
    config = read_json(path)
    for key in ("_name_or_path", "base_model_name_or_path"):
        config.pop(key, None)
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(map(str, config[key]))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode("utf-8")).hexdigest()


@functools.lru_cache(maxsize=1024)
def _remembered(path: Path, size: int, mtime_ns: int, inode: int) -> str:
    return sha256(path)


BLOCK = 2**18
"""Bytes of a tensor that are hashed together."""


class TensorDigest:
    """A tensor's digest, from parts added in the order of its bytes but hashed on any thread.

    XXH3 (128 bits) over the XXH3 of every block of 256 KiB: computed in parallel at the speed of memory, independent
    of shards and slicing. It detects corruption, not forgery: for that, compare SHA-256 of the files.
    """

    def __init__(self) -> None:
        self._blocks = bytearray()
        self._open = b""
        self.seen = 0

    def add(self, part: "Part") -> None:
        """Add the next part."""
        head, blocks, tail, size = part
        self._extend(head)
        self._blocks += blocks
        self._extend(tail)
        self.seen += size

    def _extend(self, data: bytes) -> None:
        self._open += data
        if len(self._open) == BLOCK:
            self._blocks += xxhash.xxh3_128_digest(self._open)
            self._open = b""

    def hexdigest(self) -> str:
        """The digest, once all parts were added."""
        last = xxhash.xxh3_128_digest(self._open) if self._open else b""
        return xxhash.xxh3_128_hexdigest(bytes(self._blocks) + last)


Part = tuple[bytes, bytes, bytes, int]
"""The bytes before the first whole block, the digests of whole blocks, the bytes after the last one, and the size."""


def hash_part(start: int, data: memoryview) -> Part:
    """Hash a tensor's bytes from offset `start` on, on any thread."""
    size = len(data)
    first = min(-start % BLOCK, size)
    last = max(first, (start + size) // BLOCK * BLOCK - start)
    blocks = b"".join(xxhash.xxh3_128_digest(data[at : at + BLOCK]) for at in range(first, last, BLOCK))
    return bytes(data[:first]), blocks, bytes(data[last:]), size


def content_digest(tensors: Mapping[str, tuple[str, list[int], str]]) -> str:
    """One digest for all tensors, by name: (type, shape, digest) each. Independent of how they are split into files."""
    lines = "".join(f"{name} {kind} {shape} {value}\n" for name, (kind, shape, value) in sorted(tensors.items()))
    return xxhash.xxh3_128_hexdigest(lines.encode("utf-8"))
