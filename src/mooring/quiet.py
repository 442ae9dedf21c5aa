"""Silence for libraries that print progress bars, logs and warnings of their own."""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

Library = Literal["transformers", "datasets", "lm_eval"]


@contextlib.contextmanager
def quiet(*libraries: Library, stderr: bool = False) -> Iterator[None]:
    """Silence libraries and Python's warnings while the block runs; everything is restored afterwards.

    The settings belong to the process, so other threads are silent too meanwhile.

    Args:
        libraries: Whose progress bars and logs to switch off.
        stderr: Whether to discard whatever else is written to `sys.stderr`.
    """
    switches = {"transformers": _transformers, "datasets": _datasets, "lm_eval": _lm_eval}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for library in libraries:
            stack.enter_context(switches[library]())
        if stderr:
            nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123 — a device
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def _transformers() -> Iterator[None]:
    from transformers.utils import logging as switch

    level, bars = switch.get_verbosity(), switch.is_progress_bar_enabled()
    switch.set_verbosity_error()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        switch.set_verbosity(level)
        if bars:
            switch.enable_progress_bar()


@contextlib.contextmanager
def _datasets() -> Iterator[None]:
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _lm_eval() -> Iterator[None]:
    import lm_eval.api.model
    import lm_eval.api.task

    log = logging.getLogger("lm_eval")
    level = log.level
    modules: tuple[Any, ...] = (lm_eval.api.model, lm_eval.api.task)
    bars = [module.tqdm for module in modules]
    log.setLevel(logging.CRITICAL)
    for module, bar in zip(modules, bars, strict=True):  # lm-eval has no switch for them
        module.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        log.setLevel(level)
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
