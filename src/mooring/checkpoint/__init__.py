"""Model folders: open one (safetensors, sharded or not; a LoRA adapter; GGUF), a slice at a time, and write one.

Nothing here holds a whole model in memory, GGUF aside, and nothing is left half-written.
"""

from mooring.checkpoint.digest import (
    Part,
    TensorDigest,
    combine,
    content_digest,
    digest,
    file_digests,
    hash_part,
    text_digest,
)
from mooring.checkpoint.header import NAMES, TensorInfo
from mooring.checkpoint.lora import ADAPTER_CONFIG, Adapter, check_fits, open_adapter
from mooring.checkpoint.reader import Checkpoint, TensorFiles, is_adapter, open_checkpoint, read_config, read_json
from mooring.checkpoint.writer import MANIFEST, Writer, copy_side_files, side_files

__all__ = [
    "ADAPTER_CONFIG",
    "MANIFEST",
    "NAMES",
    "Adapter",
    "Checkpoint",
    "Part",
    "TensorDigest",
    "TensorFiles",
    "TensorInfo",
    "Writer",
    "check_fits",
    "combine",
    "content_digest",
    "copy_side_files",
    "digest",
    "file_digests",
    "hash_part",
    "is_adapter",
    "open_adapter",
    "open_checkpoint",
    "read_config",
    "read_json",
    "side_files",
    "text_digest",
]
