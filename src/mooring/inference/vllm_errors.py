"""Why vLLM did not start, in one line with a way out: read from its exception and from what its processes printed."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import Match

from mooring.errors import ModelError, UserError
from mooring.inference.logs import engine_logs, keep_log, log_tail

_RAISED = re.compile(r"(?:^|\s)(?:[a-z_]+\.)*([A-Z]\w*(?:Error|Exception)): (\S.*)", re.MULTILINE)
"""An exception's last line in a traceback, after a prefix of vLLM's."""
_ELSEWHERE = "Engine core initialization failed"
"""How the exception begins that only says that another process has failed."""
_SMALLER = "use several GPUs (--tensor-parallel 2), 16-bit weights (--dtype bfloat16) or a smaller model"


@contextlib.contextmanager
def starting(folder: Path, log: Path | None = None) -> Iterator[Path]:
    """Start vLLM in this block: its output goes to a log file, and its failure becomes one line.

    Args:
        folder: The model, for the message.
        log: The file; by default a temporary one, see `engine_logs`.

    Yields:
        The path of the log file.

    Raises:
        ModelError: The block raised an exception that is not a `UserError`; see `start_error`. Notes of it
            (`__notes__`) are the last lines of the log, unless the cause is known, and where the rest is.
    """
    with engine_logs(log) as path:
        offset = path.stat().st_size
        try:
            yield path
        except UserError:
            raise
        except Exception as error:  # vLLM raises exceptions of all kinds
            keep_log(path)
            printed = log_tail(path, 400, begin=offset)
            found = start_error(folder, f"{printed}\n{type(error).__name__}: {error}")
            if found.code == "model.unloadable":
                found.add_note(log_tail(path, begin=offset))
            found.add_note(f"vLLM's log: {path}")
            raise found from error


def start_error(folder: Path, text: str) -> ModelError:
    """The error for what vLLM said when it could not start on a model.

    Args:
        folder: The model.
        text: The exception of vLLM, and what its processes printed before: the cause is often only there.

    Returns:
        `model.too_large` if the weights do not fit; `model.context_too_large`, `model.gpu_in_use`,
        `model.tensor_parallel` or `model.unsupported_dtype` if another option helps; `model.no_main_guard` if a script
        of the user is run again by vLLM's processes; `model.unloadable` with vLLM's own reason for anything else.
    """
    flat = " ".join(text.split())
    for pattern, explain in _KNOWN.items():
        if match := re.search(pattern, flat):
            return explain(folder, match)
    raised = [f"{name}: {reason}" for name, reason in _RAISED.findall(text) if not reason.startswith(_ELSEWHERE)]
    silent = "one of its processes ended without giving a reason"
    reason = raised[-1] if raised else silent if _ELSEWHERE in text else text.strip().rpartition("\n")[2]
    hint = "if transformers loads it (`--engine transformers`), vLLM does not support it"
    return ModelError(f"{folder}: vLLM cannot load it ({reason})", hint, code="model.unloadable")


def _no_room(folder: Path, match: Match[str]) -> ModelError:
    what = f"{folder}: too large for the memory that vLLM may use"
    return ModelError(what, f"{_SMALLER}, or raise --gpu-memory", code="model.too_large")


def _out_of_memory(folder: Path, match: Match[str]) -> ModelError:
    return ModelError(f"{folder}: too large for the GPU's memory", _SMALLER, code="model.too_large")


def _warm_up(folder: Path, match: Match[str]) -> ModelError:
    what = f"{folder}: the GPU's memory was used up as vLLM started"
    return ModelError(what, "give it less with --gpu-memory, such as 0.8", code="model.too_large")


def _long_context(folder: Path, match: Match[str]) -> ModelError:
    length, needed, free, fits = match.groups()
    what = f"{folder}: answers with its context of {int(length):,} tokens need {needed} GiB, and {free} GiB are left"
    shorter = f"--max-model-len {fits}" if fits else "a lower --max-model-len"
    return ModelError(what, f"add {shorter}, or raise --gpu-memory", code="model.context_too_large")


def _in_use(folder: Path, match: Match[str]) -> ModelError:
    device, free, total, _, wanted = match.groups()
    share = math.floor(100 * float(free) / float(total)) / 100
    what = f"{folder}: vLLM may use {wanted} GiB of {device}, and {free} of {total} GiB are free"
    hint = f"end what else uses it, or add --gpu-memory {share:g}" if share else "end what else uses it"
    return ModelError(what, hint, code="model.gpu_in_use")


def _beyond_the_model(folder: Path, match: Match[str]) -> ModelError:
    given, own = match.groups()
    what = f"{folder}: max_model_len is {given}, and the model has {own}"
    return ModelError(what, f"give at most --max-model-len {own}", code="model.context_too_large")


def _heads(folder: Path, match: Match[str]) -> ModelError:
    heads, given = map(int, match.groups())
    fits = [count for count in (2, 4, 8, 16) if heads % count == 0]
    what = f"{folder}: its {heads} attention heads cannot be shared by {given} GPUs"
    hint = f"--tensor-parallel can be {', '.join(map(str, [1, *fits]))}"
    return ModelError(what, hint, code="model.tensor_parallel")


def _too_few_gpus(folder: Path, match: Match[str]) -> ModelError:
    given, there = match.groups()
    what = f"{folder}: --tensor-parallel {given} needs {given} GPUs, and there are {there}"
    return ModelError(what, f"give at most --tensor-parallel {there}", code="model.tensor_parallel")


def _no_main_guard(folder: Path, match: Match[str]) -> ModelError:
    what = f"{folder}: vLLM starts a process, which has run this script again"
    return ModelError(what, 'put its code below `if __name__ == "__main__":`', code="model.no_main_guard")


def _no_bfloat16(folder: Path, match: Match[str]) -> ModelError:
    return ModelError(f"{folder}: this GPU has no bfloat16", "add --dtype float16", code="model.unsupported_dtype")


_KNOWN: dict[str, Callable[[Path, Match[str]], ModelError]] = {
    r"No available memory for the cache blocks": _no_room,
    r"Cannot auto-fit max_model_len: not enough GPU memory": _no_room,
    r"model's max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is needed, which is larger than the available KV cache "
    r"memory \(([\d.]+) GiB\)\.(?: Based on the available memory, the estimated maximum model length is (\d+))?": (
        _long_context
    ),
    r"(?:Free memory on device|Available memory on) (\S+(?: \d+)?) \(([\d.]+)/([\d.]+) GiB\) on startup is less than "
    r"desired \w+ memory utilization \(([\d.]+), ([\d.]+) GiB\)": _in_use,
    r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len \(\w+=(\d+)": _beyond_the_model,
    r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)": _heads,
    r"World size \((\d+)\) is larger than the number of available GPUs \((\d+)\)": _too_few_gpus,
    r"Bfloat16 is only supported on GPUs": _no_bfloat16,
    r"out of memory occurred when warming up": _warm_up,
    r"finished its bootstrapping phase": _no_main_guard,
    r"(?:CUDA|HIP) out of memory": _out_of_memory,
}
"""What vLLM 0.32 says, as a pattern, and the error for it."""
