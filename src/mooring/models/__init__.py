"""Model folders: open one (safetensors, sharded or not; a LoRA adapter; GGUF), a slice at a time, and write one.

Nothing here holds a whole model in memory, GGUF aside, and nothing is left half-written.
"""

from mooring.models.checkpoint import (
    MANIFEST,
    Checkpoint,
    TensorFiles,
    Writer,
    copy_side_files,
    is_adapter,
    open_checkpoint,
    read_config,
    read_json,
    side_files,
)
from mooring.models.digest import (
    Part,
    TensorDigest,
    combine,
    content_digest,
    file_digests,
    hash_part,
    model_digest,
    text_digest,
)
from mooring.models.lora import ADAPTER_CONFIG, Adapter, check_fits, open_adapter
from mooring.models.safetensors_file import NAMES, TensorInfo

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
    "file_digests",
    "hash_part",
    "is_adapter",
    "model_digest",
    "open_adapter",
    "open_checkpoint",
    "read_config",
    "read_json",
    "side_files",
    "text_digest",
]
