"""lm-eval, where it is installed, without its log and its bars."""

import contextlib
import functools
import importlib.metadata
import logging
import random
import warnings
from collections.abc import Iterator
from typing import Any

from mooring.errors import MissingExtraError


def version() -> str:
    """lm-eval's version.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError("lm-eval", "pip install 'mooring[lm-eval]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log, warnings and bars of lm-eval and datasets while the block runs."""
    import datasets
    import lm_eval.api.model
    import lm_eval.api.task

    log = logging.getLogger("lm_eval")
    level, bars = log.level, datasets.are_progress_bars_disabled()
    modules: tuple[Any, ...] = (lm_eval.api.model, lm_eval.api.task)
    drawn = [module.tqdm for module in modules]
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    for module, bar in zip(modules, drawn, strict=True):  # lm-eval has no switch for them
        module.tqdm = functools.partial(bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        for module, bar in zip(modules, drawn, strict=True):
            module.tqdm = bar


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global random numbers of Python and numpy, which some tasks draw from, from a seed; then as they were."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
