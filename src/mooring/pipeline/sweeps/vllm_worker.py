"""What runs in vLLM's worker processes: writes a merge into the weights of the running engine, tensor by tensor.

With tensor parallelism each worker merges for itself, and vLLM keeps the worker's part of each tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mooring.inference.vllm_owner import OwnedWorker
from mooring.merging.in_memory import OpenMerge
from mooring.merging.pair import open_pair


class MergeWorker(OwnedWorker):
    """A worker extension of vLLM (`worker_extension_cls`)."""

    _merges: dict[str, OpenMerge]

    def mooring_load(self, merge: Mapping[str, Any], lam: Any, as_linear: bool) -> None:
        """Replace the weights of the model in place by a merge.

        Args:
            merge: Folders of `base`, `tuned` and `references` (by role), `method` and `options`.
            lam: λ, as in `mooring.merging.merge`.
            as_linear: Merge by `linear`, whatever the method.
        """
        if not hasattr(self, "_merges"):
            self._merges = {}
        opened = self._merges.get(repr(merge))
        if opened is None:
            tuned = [Path(folder) for folder in merge["tuned"]]
            pair = open_pair(Path(merge["base"]), tuned, references=merge["references"])
            opened = self._merges[repr(merge)] = OpenMerge(pair, method=merge["method"], **merge["options"])
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        runner.reload_weights(weights_iterator=opened.stream(lam, as_linear=as_linear))
