"""A merge as an engine that can be asked, at one λ after the other, by changing the weights of one model in place."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from mooring.chat import DEFAULT_SYSTEM
from mooring.errors import ModelError
from mooring.inference.transformers import Dtype, TransformersEngine, quiet
from mooring.merging.in_memory import OpenMerge


class MergedModel:
    """A base and a tuned model as one model in memory, at any λ.

    The first λ loads it, as transformers would load the merge from the disk. Every further one writes the merge's
    values into the parameters that are there. Nothing adds up: each λ is computed from the files. Where transformers
    rearranges weights as it loads them (a mixture's experts), or ties two that the merge holds apart, the model is made
    anew for each λ instead.

    Args:
        base: Folder of the aligned model.
        tuned: Folder of the tuned model, or of a LoRA adapter on the base; or several of them.
        method: A name in `merge.rules.METHODS`.
        system: As the engine's.
        batch_size: As the engine's.
        dtype: Type in memory; `auto` is the checkpoint's.
        device: `auto` is a GPU where there is one.
        settings: Other settings of the method.

    Attributes:
        in_place: Whether a change of λ is made in place; known once a λ was asked for.

    Raises:
        UserError: The models cannot be opened, or do not belong together.
    """

    def __init__(
        self,
        base: str | Path,
        tuned: str | Path | Sequence[str | Path],
        *,
        method: str = "linear",
        system: str | None = DEFAULT_SYSTEM,
        batch_size: int = 32,
        dtype: Dtype = "auto",
        device: str = "auto",
        **settings: Any,
    ) -> None:
        self._base = Path(base)
        self._merge = OpenMerge(base, tuned, method=method, **settings)
        self._dtype = dtype
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._asking: dict[str, Any] = {"system": system, "batch_size": batch_size}
        self._engine: TransformersEngine | None = None
        self._places: dict[str, Tensor] = {}
        self._at: tuple[Any, bool] | None = None
        self.in_place = False

    @property
    def keeps_side_files(self) -> bool:
        """Whether configuration and tokenizer are the base's own, so that λ = 0 is the base in everything."""
        return self._merge.keeps_side_files

    def at(self, lam: Any, *, plain: bool = False) -> TransformersEngine:
        """The model at λ. What was returned for another λ must not be asked any more: it is the same one.

        Args:
            lam: λ, the weight of the tuned model; 0 is the base. Or λ by module, as `merge` takes it.
            plain: Merge by `linear`, so that λ = 1 is the tuned model itself, whatever the method would drop.

        Raises:
            UserError: As `OpenMerge.fill`.
            ModelError: transformers cannot make a model of the merged tensors.
        """
        if self._engine is None or self._at != (lam, plain):
            self._at = None  # whatever stops the work half-way
            if self._engine is not None and self.in_place:
                self._merge.fill(lam, self._places, plain=plain)
            else:
                self.unload()
                self._load(lam, plain)
            self._at = (lam, plain)
        assert self._engine is not None
        return self._engine

    def unload(self) -> None:
        """Let the model go; the next `at` loads it anew."""
        self._engine, self._places, self._at = None, {}, None

    def close(self) -> None:
        """Let the model go, and close the files."""
        self.unload()
        self._merge.close()

    def _load(self, lam: Any, plain: bool) -> None:
        with tempfile.TemporaryDirectory() as scratch, quiet():
            tensors = self._merge.tensors(lam, plain=plain)
            self._merge.write_side_files(Path(scratch))
            try:
                model, tokenizer = assemble(Path(scratch), tensors, self._dtype)
            except ModelError:
                raise
            except Exception as error:  # whatever a loader meets in a broken folder, in one line
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                what = f"{self._base}: its merge cannot be loaded ({reason})"
                raise ModelError(what, "is the folder whole?") from error
        model = model.to(self._device)
        places = places_of(model, tensors)
        self.in_place, self._places = places is not None, places or {}
        self._engine = TransformersEngine(model, tokenizer, **self._asking)


def assemble(folder: Path, tensors: dict[str, Tensor], dtype: Dtype) -> tuple[Any, Any]:
    """Model and tokenizer, from a folder without weights and the weights.

    On the CPU the model's parameters are these tensors, where they have its type already.

    Raises:
        ModelError: The model has a tensor that is not among them.
    """
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    with torch.device("meta"):
        kind = type(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    model, info = kind.from_pretrained(
        None,
        config=config,
        generation_config=_generation_config(folder),
        state_dict=dict(tensors),
        dtype=dtype,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"the merge: {len(missing)} tensors are missing, such as {missing[0]}", "is the base whole?")
    return model, transformers.AutoTokenizer.from_pretrained(folder, **local)


def _generation_config(folder: Path) -> Any:
    """As transformers finds it for a folder: its own file, or the part of the model's configuration that is one."""
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return transformers.GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )


def places_of(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Where in a loaded model each of the tensors lies that it was loaded from.

    Found by name and shape, and held to by value.

    Returns:
        The model's own tensors by the names of the checkpoint; None where some weight of the model stands for no one
        of them alone, or for two.
    """
    state = model.state_dict(keep_vars=True)
    prefix = model.base_model_prefix + "."
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            place = state.get(candidate)
            if place is not None and place.shape == tensor.shape:
                found[name] = place.detach()
                break
    starts = [place.data_ptr() for place in found.values() if place.numel()]
    covered = {*starts} >= {place.data_ptr() for place in state.values() if place.numel()}
    if not covered or len({*starts}) < len(starts) or not all(place.is_contiguous() for place in found.values()):
        return None
    same = all(
        place.data_ptr() == tensors[name].data_ptr()
        or torch.equal(place, tensors[name].to(place.dtype).to(place.device))
        for name, place in found.items()
    )
    return found if same else None
