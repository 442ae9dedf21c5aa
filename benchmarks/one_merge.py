"""Do one merge with Mooring and print its time and peak memory as JSON; what the benchmarks start for each run.

    python benchmarks/one_merge.py '{"base": "base", "tuned": ["tuned"], "out": "out", "method": "linear", "lam": 0.6}'

The time is that of the merge itself, without Python's start and imports; the peak is that of the whole process.
"""

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

OUTPUT = ("verify", "keep_quantization")
"""Keys of a job that belong to its output's form."""


def ours(job: dict[str, Any]) -> None:
    """Do a job: its keys are arguments of `merge`; those in `OUTPUT` are its output's, `one_by_one` does
    each of `lambdas` alone, `as_adapter` writes an adapter instead."""
    base, tuned, out = Path(job["base"]), [Path(each) for each in job["tuned"]], Path(job["out"])
    more = {key: value for key, value in job.items() if key not in ("base", "tuned", "out", *OUTPUT)}
    if more.pop("as_adapter", False):
        from mooring.merging.adapter import merge_adapters
        from mooring.merging.job import Job, options_of

        options = options_of(job["method"], job["lam"])
        names = tuple(str(folder) for folder in tuned)
        merge_adapters(base, tuned, out, Job(method=job["method"], base=str(base), tuned=names, options=options))
    else:
        from mooring.merging.job import Output
        from mooring.merging.merge import merge

        output = Output(**{key: job[key] for key in OUTPUT if key in job})
        if more.pop("one_by_one", False):
            for lam in more.pop("lambdas"):
                merge(base, tuned, out / f"lam-{lam:g}", lam=lam, output=output, **more)
        else:
            merge(base, tuned, out, output=output, **more)


def main() -> None:
    """Import first, then time."""
    job = json.loads(sys.argv[1])
    importlib.import_module("mooring.merging.merge")
    started = time.perf_counter()
    ours(job)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert peak
    print(json.dumps({"seconds": seconds, "peak": int(peak[1]) / 1024}))


if __name__ == "__main__":
    main()
