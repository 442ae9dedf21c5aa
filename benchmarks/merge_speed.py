"""Merging beside `cat` (the limit) and mergekit, on a 1.24-billion-parameter bfloat16 pair that it makes itself.

    python benchmarks/merge_speed.py [--mergekit PATH/TO/mergekit-yaml] [--work FOLDER]
    python benchmarks/merge_speed.py --big                      # peak memory with one tensor of 4 GiB

Needs 18 GiB of disk (30 with --big) and 12 GiB of free memory, so that all is read from the page cache. The rows are
run in turn, `--repeat` times, each of ours right after the `cat` that it is held against; the median counts. Every
output is removed before the next. What was asked for, with the ratios reached, comes last. The time of `in one process`
leaves out Python's start and imports.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mergekit_env
from timing import Run, run, run_inside, summary, table

HERE = Path(__file__).parent
LAMBDAS = (0.2, 0.4, 0.6, 0.8)
SETTLE = 2
"""Seconds between one run's removal and the next run: a disk mounted with `discard` goes on working after a sync."""
MEMORY = 600
"""MiB: the most that any merge may hold."""

METHODS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "linear": (("tuned",), {}),
    "slerp": (("tuned",), {}),
    "model_stock": (("tuned", "other"), {"lam": 1.0}),
    "karcher": (("tuned", "other"), {"lam": 2 / 3}),
    "dare_linear": (("tuned",), {"density": 0.5}),
    "ties": (("tuned",), {"density": 0.5}),
    "breadcrumbs": (("tuned",), {"density": 0.9, "gamma": 0.01}),
    "della": (("tuned",), {"density": 0.5, "epsilon": 0.15}),
}
"""A method's tuned models and settings."""

TWICE = {"slerp", "model_stock", "karcher", "ties", "breadcrumbs", "della"}
"""Methods that need a first pass over their inputs: their limit reads the inputs twice."""

LIMITS = {"linear": 1.2, "slerp": 2, "model_stock": 2, "karcher": 2.5, "dare_linear": 4, "ties": 8, "breadcrumbs": 8}
"""The most that a merge in one process may take, in times of `cat` over the bytes that the method must read."""

Rows = dict[str, Callable[[], Run]]
"""What is measured, by its name in the table."""


def cat(inputs: list[Path], passes: int, out: Path) -> Run:
    """Read every input so many times and write one of them once, with `cat`."""
    out.mkdir()
    every = " ".join(f"'{folder}'/*.safetensors" for folder in inputs)
    rest = " ".join(f"'{folder}'/*.safetensors" for folder in inputs[1:])
    script = "; ".join([f"cat {every} > /dev/null"] * (passes - 1) + [f"cat '{inputs[0]}'/*.safetensors > '{out}/one'"])
    return run(["sh", "-ec", f"{script}; cat {rest} > /dev/null"])[0]


def job(models: Path, out: Path, method: str, **more: Any) -> dict[str, Any]:
    """One merge, as `one_merge.py` takes it."""
    tuned, settings = METHODS[method]
    given = {"base": str(models / "base"), "tuned": [str(models / name) for name in tuned], "out": str(out)}
    return given | {"method": method} | ({} if "lambdas" in more else {"lam": 0.6}) | settings | more


def inside(models: Path, out: Path, method: str, **more: Any) -> Run:
    """One of our merges, timed without Python's start and imports."""
    return run_inside(HERE / "one_merge.py", job(models, out, method, **more))


def ours(models: Path, out: Path, tuned: str, *flags: str) -> Run:
    """Our whole command, for Linear."""
    program = str(Path(sys.executable).with_name("mooring"))
    command = [program, "merge", str(models / "base"), str(models / tuned), "--lam", "0.6", "--out", str(out), *flags]
    return run(command)[0]


def theirs(program: Path, models: Path, out: Path, method: str) -> Run:
    """mergekit's whole command."""
    given = job(models, out, method)
    more = {key: given[key] for key in ("density", "gamma", "epsilon") if key in given}
    tuned = [Path(folder) for folder in given["tuned"]]
    document = mergekit_env.configuration(method, models / "base", tuned, given["lam"], "bfloat16", **more)
    return run(mergekit_env.command(program, document, out), mergekit_env.OFFLINE)[0]


def rows(models: Path, out: Path, program: Path | None, methods: list[str]) -> Rows:
    """Everything to measure, the limits first."""
    pair, three = [models / "base", models / "tuned"], [models / "base", models / "tuned", models / "other"]
    limits: Rows = {
        "cat: 2 inputs once": lambda: cat(pair, 1, out),
        "cat: 2 inputs twice": lambda: cat(pair, 2, out),
        "cat: 3 inputs twice": lambda: cat(three, 2, out),
    }
    found: Rows = {}
    for method in methods:
        found[f"{limit_of(method)}, before {method}"] = limits[limit_of(method)]
        found[f"{method}: in one process"] = lambda method=method: inside(models, out, method)  # type: ignore[misc]
        if method == "linear":
            found["linear: in one process, not read again"] = lambda: inside(models, out, "linear", verify=False)
            found["linear: whole command"] = lambda: ours(models, out, "tuned")
        if program:
            found[f"{method}: mergekit"] = lambda method=method: theirs(program, models, out, method)  # type: ignore[misc]
    if "linear" in methods:
        adapter = {"tuned": [str(models / "adapter")]}
        found["four λ in one pass"] = lambda: inside(models, out, "linear", lambdas=LAMBDAS)
        found["four λ in four passes"] = lambda: inside(models, out, "linear", lambdas=LAMBDAS, one_by_one=True)
        found["LoRA adapter: in one process"] = lambda: inside(models, out, "linear", **adapter)
        found["--as-adapter: in one process"] = lambda: inside(models, out, "linear", as_adapter=True, **adapter)
        found["--as-adapter: whole command"] = lambda: ours(models, out, "adapter", "--as-adapter")
    return found


def measure(found: Rows, out: Path, repeat: int) -> dict[str, list[Run]]:
    """Run every row in turn, so often, with nothing of the last one left; each line is printed as it comes."""
    runs: dict[str, list[Run]] = {name: [] for name in found}
    for number in range(repeat):
        for name, start in found.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            time.sleep(SETTLE)
            runs[name].append(start())
            last = runs[name][-1]
            print(f"{number + 1}/{repeat} {name}: {last.seconds:.2f} s, {last.peak:.0f} MiB", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def ratio(ours: list[Run], limit: list[Run]) -> float:
    """The median over the turns of what a run took in times of the `cat` before it."""
    return statistics.median(own.seconds / each.seconds for own, each in zip(ours, limit, strict=True))


def limit_of(method: str) -> str:
    """The `cat` that reads the bytes that a method must read."""
    return f"cat: {len(METHODS[method][0]) + 1} inputs {'twice' if method in TWICE else 'once'}"


def verdicts(runs: Mapping[str, list[Run]]) -> list[list[str]]:
    """What was asked for, what came out, and whether it is met. A row that was not run is left out."""
    found = [["what", "reached", "asked for", "met"]]
    seen = {name: summary(each) for name, each in runs.items()}

    def add(what: str, value: float, asked: float, unit: str = "×", least: bool = False) -> None:
        met = value >= asked if least else value <= asked
        found.append(
            [what, f"{value:.3g} {unit}", f"{'≥' if least else '≤'} {asked:.3g} {unit}", "yes" if met else "NO"]
        )

    for method in METHODS:
        own, other = seen.get(f"{method}: in one process"), seen.get(f"{method}: mergekit")
        limit = runs.get(f"{limit_of(method)}, before {method}")
        if own and method in LIMITS and limit:
            for what in ("in one process", "in one process, not read again"):
                if each := runs.get(f"{method}: {what}"):
                    add(f"{method}: {what}, of `{limit_of(method)}`", ratio(each, limit), LIMITS[method])
        if own and other:
            whole = seen["linear: whole command"].whole if method == "linear" else own.whole
            asked = {"linear": 6, "della": 3}.get(method, 1)
            add(f"{method}: mergekit's time over ours, Python's start in both", other.whole / whole, asked, least=True)
    if (many := seen.get("four λ in one pass")) and (one := seen.get("four λ in four passes")):
        add("four λ in one pass, of four passes", many.seconds / one.seconds, 0.6)
    for name in ("--as-adapter: in one process", "--as-adapter: whole command"):
        if name in seen:
            add(name, seen[name].seconds, 2, "s")
    peaks = [each.peak for name, each in seen.items() if "cat" not in name and "mergekit" not in name]
    add("greatest peak memory of ours", max(peaks), MEMORY, "MiB")
    return found


def report(runs: Mapping[str, list[Run]]) -> str:
    """Both tables."""
    times = [["what", "median", "least–most", "peak memory"]]
    for name, each in ((name, summary(own)) for name, own in runs.items()):
        times.append([name, f"{each.seconds:.2f} s", f"{each.least:.2f}–{each.most:.2f}", f"{each.peak:.0f} MiB"])
    return f"\n{table(times)}\n\n{table(verdicts(runs))}"


def main() -> None:
    """Make the models, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="folder for the models, kept; a temporary one without")
    parser.add_argument("--mergekit", default=None, help="path of mergekit-yaml; left out without")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--big", action="store_true", help="one 4 GiB tensor: peak memory of every method, once each")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the models; smaller for a first look")
    parser.add_argument("--layers", type=int, default=None, help="16, or 1 with --big")
    parser.add_argument("--vocab", type=int, default=None, help="128,256, or 1,048,576 with --big")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        layers, vocab = args.layers or (1 if args.big else 16), args.vocab or (2**20 if args.big else 128_256)
        models = work / f"{args.hidden}-{layers}-{vocab}"
        if not (models / "adapter").is_dir():
            size = ["--hidden", str(args.hidden), "--layers", str(layers), "--vocab", str(vocab)]
            made = run([sys.executable, str(HERE / "made_models.py"), str(models), *size])[1]
        else:
            made = f"{models} from before\n"
        print(f"{made.strip()}; {os.cpu_count()} cores, {platform.processor() or platform.machine()}", flush=True)
        out, methods = work / "out", args.only.split(",")
        found = rows(models, out, None if args.big else mergekit_env.executable(args.mergekit), methods)
        if args.big:
            found = {name: start for name, start in found.items() if "cat" not in name}
        run(["sh", "-c", f"cat '{models}'/*/*.safetensors > /dev/null"])  # into the page cache
        print(report(measure(found, out, 1 if args.big else args.repeat)))


if __name__ == "__main__":
    main()
