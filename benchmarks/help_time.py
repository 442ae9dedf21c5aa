"""How long `mooring --help` takes beside `mergekit-yaml --help`: the median of five runs each, the ratio last.

    python benchmarks/help_time.py [PATH/TO/mergekit-yaml]

mergekit lives in an environment of its own (`pip install mergekit`): it pins other versions than Mooring does.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 5


def seconds(command: list[str]) -> float:
    """The median time of a command."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Time both, print the ratio."""
    ours = seconds([str(Path(sys.executable).with_name("mooring")), "--help"])
    print(f"mooring --help: {ours:.3f} s", flush=True)
    theirs = seconds([sys.argv[1] if len(sys.argv) > 1 else "mergekit-yaml", "--help"])
    print(f"mergekit-yaml --help: {theirs:.3f} s")
    print(f"ratio: {ours / theirs:.4f}")


if __name__ == "__main__":
    main()
