"""mergekit, as a program of its own: a configuration for a job, and the command that does it. No torch here.

mergekit comes with the extra `peers`. Nothing of it is imported here: it is LGPL, and slow to import.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PINNED = "0.1.5"
"""The version that the figures in the docs were made with."""


def executable(given: str | None) -> Path | None:
    """The `mergekit-yaml` to use.

    Raises:
        SystemExit: The path that was given holds none.
    """
    if given is None:
        return None
    found = shutil.which(given)
    if not found:
        sys.exit(f"{given}: no such program; give the path of mergekit-yaml")
    return Path(found)


def configuration(
    method: str, base: Path, tuned: Sequence[Path], lam: float, dtype: str, **more: float | bool
) -> dict[str, Any]:
    """mergekit's configuration for a method at λ, the weight of the tuned models.

    Args:
        method: mergekit's name of it.
        base: Folder of the base.
        tuned: Folders of the tuned models.
        lam: λ. `linear` takes it as weights 1−λ and λ, `slerp` as t, methods on changes as `lambda`. `model_stock` and
            `karcher` take none: the first sets its own, the second gives every model the same share.
        dtype: Of the computation and of the output.
        more: `density`, `gamma`, `epsilon` of the tuned models; `normalize` and `rescale` of the merge.
    """
    own = {key: more[key] for key in ("density", "gamma", "epsilon") if key in more}
    shared: dict[str, Any] = {key: more[key] for key in ("normalize", "rescale") if key in more}
    models: list[dict[str, Any]] = []
    document: dict[str, Any] = {"merge_method": method, "dtype": dtype}
    if method in ("linear", "slerp", "karcher"):
        models.append({"model": str(base)})
    models += [{"model": str(folder)} for folder in tuned]
    if method == "linear":
        for model, weight in zip(models, (1 - lam, *[lam / len(tuned)] * len(tuned)), strict=True):
            model["parameters"] = {"weight": weight}
    elif method == "slerp":
        shared["t"] = lam
    elif method not in ("model_stock", "karcher"):
        shared["lambda"] = lam
        for model in models:
            model["parameters"] = {"weight": 1.0, **own}
    if method not in ("linear", "karcher"):
        document["base_model"] = str(base)
    return document | {"models": models} | ({"parameters": shared} if shared else {})


def command(program: Path, document: dict[str, Any], out: Path, seed: int = 0) -> list[str]:
    """Write the configuration beside `out` and give the command that does it, with mergekit's other settings as they
    come, except that no tokenizer is copied."""
    config = out.with_name(f"{out.name}.yml")
    config.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    return [str(program), str(config), str(out), "--no-copy-tokenizer", "--quiet", "--random-seed", str(seed)]


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
"""Environment of mergekit: every model is a folder here, and all cores are its own."""
