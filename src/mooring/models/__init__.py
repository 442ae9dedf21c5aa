"""Model folders: open one (safetensors, PyTorch's `.bin`, a LoRA adapter, GGUF), read it by slices, and write one.

Nothing here holds a whole model in memory, except for GGUF conversion, and no half-written output is left behind.
"""

from mooring.models.adapter_config import ADAPTER_CONFIG
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
    read_text,
    refuse_quantized,
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
from mooring.models.lora import Adapter, open_adapter
from mooring.models.safetensors_file import NAMES, TensorInfo
from mooring.models.thread_memory import scratch

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
    "read_text",
    "refuse_quantized",
    "scratch",
    "side_files",
    "text_digest",
]
