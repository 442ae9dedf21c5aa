"""Freeze the current results: write merges.json, verdicts.json and statistics.json next to this file.

    MOORING_DATA=PATH python tests/golden/freeze.py [merges] [verdicts] [statistics]

Run it only if a number is meant to change, and review the diff. Without MOORING_DATA the verdicts on the shared data
sets stay as they are.
"""

import sys
import tempfile
from pathlib import Path

import frozen
import test_merges
import test_statistics
import test_verdicts


def main() -> None:
    """Freeze the files named on the command line; defaults to all."""
    names = sys.argv[1:] or ["merges", "verdicts", "statistics"]
    groups = {
        "merges": test_merges.GROUPS,
        "verdicts": test_verdicts.groups(),
        "statistics": test_statistics.GROUPS,
    }
    for name in names:
        known = frozen.load(name)
        cases = {}
        for group, make in groups[name].items():
            with tempfile.TemporaryDirectory() as folder:
                made = make(Path(folder))
            cases[group] = known.get(group) if made is None else made
        path = frozen.write(name, {group: value for group, value in cases.items() if value is not None})
        count = sum(len(value) for value in cases.values() if value)
        print(f"{path}: {len(cases)} groups, {count} cases")


if __name__ == "__main__":
    main()
