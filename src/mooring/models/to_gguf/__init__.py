"""Write a model folder, or a LoRA adapter, as GGUF: the format of llama.cpp, Ollama and LM Studio.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors and metadata are those of the `gguf`
package, which llama.cpp publishes. Tensors are read a slice at a time, so that memory stays bounded.
"""

from mooring.models.to_gguf.architectures import GgufType
from mooring.models.to_gguf.write import Exported, check_adapter, check_model, write_adapter, write_model

__all__ = ["Exported", "GgufType", "check_adapter", "check_model", "write_adapter", "write_model"]
