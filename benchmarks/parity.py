"""Mooring's merges beside mergekit's, tensor by tensor in float32, on SmolLM2-135M and tuned copies of it.

    python benchmarks/parity.py --mergekit PATH/TO/mergekit-yaml [--write]

Makes the copies first (`tuned_models.py`), in `--work` or a temporary folder: 4 GB of disk and some ten minutes on two
cores. Prints Markdown; the worst error beside its bound comes last. `--write` puts it into docs/parity.md. Exit 1 if a
bound is broken.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mergekit_env
import torch
from parity_cases import EXACT, RANDOM, Case, comparable, left_open
from parity_numbers import Distance, distance, errors_apart, expected, layer_matrices, moments, opened
from timing import run, run_inside, table

HERE = Path(__file__).parent
ERRORS = 4.5
"""How many standard errors two random methods may lie apart: one chance in 150,000."""


class Both:
    """Merges with either program into two folders that are emptied before every merge."""

    def __init__(self, program: Path, work: Path) -> None:
        self.program, self.models, self.ours, self.theirs = program, work / "models", work / "ours", work / "theirs"

    def ours_of(self, case: Case) -> Path:
        """Merge with Mooring."""
        shutil.rmtree(self.ours, ignore_errors=True)
        job = {"base": str(self.models / "base"), "tuned": [str(self.models / name) for name in case.tuned]}
        lists = {key: [value] for key, value in case.more.items() if key != "normalize"}
        more = {key: value for key, value in case.more.items() if key == "normalize"}
        if case.method.startswith(("dare", "della")):
            more["rescale"] = "l1"
        options = {"method": case.method, "lam": case.lam, "out": str(self.ours)}
        run_inside(HERE / "one_merge.py", job | lists | more | options)
        return self.ours

    def theirs_of(self, case: Case, *, double: bool = False) -> Path:
        """Merge with mergekit, computing in float32 or in float64; the output is in float32."""
        shutil.rmtree(self.theirs, ignore_errors=True)
        tuned = [self.models / name for name in case.tuned]
        base, dtype = self.models / "base", "float64" if double else "float32"
        document = mergekit_env.configuration(case.method, base, tuned, case.lam, dtype, **case.more)
        document["out_dtype"] = "float32"
        run(mergekit_env.command(self.program, document, self.theirs), mergekit_env.OFFLINE)
        return self.theirs


def exact_rows(both: Both, cases: Sequence[Case]) -> Iterator[tuple[list[str], Case, Distance]]:
    """The first table, a row at a time; a case with no tensor to compare gives none."""
    for case in cases:
        names, left_out = comparable(case, both.models)
        if not names:
            continue
        base, ours, skip = both.models / "base", both.ours_of(case), left_open(case, both.models)
        single = distance(base, ours, both.theirs_of(case), names, skip)
        found = distance(base, ours, both.theirs_of(case, double=True), names, skip) if case.angles else single
        if found.open:
            left_out = f"{found.open:,} entries that tie at a threshold ({found.with_open:.1e} with them)"
        holds = "yes" if found.relative <= case.bound else "NO"
        figures = [f"{single.relative:.1e}", f"{found.relative:.1e}" if case.angles else "–", f"{found.of_change:.1e}"]
        row = [case.method, " + ".join(case.tuned), str(case), str(found.tensors), left_out, *figures]
        yield [*row, f"{case.bound:.0e}", holds], case, found


def random_rows(both: Both, cases: Sequence[Case]) -> Iterator[tuple[list[str], bool]]:
    """The second table, a row at a time, each with whether it holds."""
    base = both.models / "base"
    names = list(layer_matrices(opened(base)))
    for case in cases:
        tuned = [both.models / name for name in case.tuned]
        theirs = moments(base, tuned, both.theirs_of(case), case.lam, names)
        theory = None
        if len(tuned) == 1:
            theory = expected(base, tuned[0], names, case.more["density"], case.more.get("epsilon"), True)
        ours = moments(base, tuned, both.ours_of(case), case.lam, names)
        apart = max(errors_apart(ours.mean, theirs.mean), errors_apart(ours.variance, theirs.variance))
        row = [case.method, " + ".join(case.tuned), str(case)]
        row += [_pair(each.mean.mean(), each.variance.mean()) if each else "–" for each in (ours, theirs, theory)]
        yield [*row, f"{apart:.1f}", "yes" if apart <= ERRORS else "NO"], apart <= ERRORS


def _pair(mean: torch.Tensor, variance: torch.Tensor) -> str:
    return f"{float(mean):.4f}, {float(variance):.4f}"


def versions(program: Path) -> str:
    """What was run, in a line."""
    ask = "import importlib.metadata as m; print('mergekit', m.version('mergekit'), 'on torch', m.version('torch'))"
    theirs = subprocess.run([str(program.parent / "python"), "-c", ask], capture_output=True, text=True, check=True)
    return f"Mooring on torch {torch.__version__}; {theirs.stdout.strip()}; {platform.machine()}."


INTRO = """# Parity with mergekit

Built by `python benchmarks/parity.py --mergekit PATH/TO/mergekit-yaml --write`. Both programs merge the same models,
with the same settings, in float32; their outputs are compared tensor by tensor in float64. The base is the bundled
SmolLM2-135M-Instruct. `tuned` and `other` are copies of it after five steps of Adam with a learning rate of 1e-4 on all
weights, each on a different sample of the bundled tool calls; `far` used 3e-3, so that its angles are large.

"""
EXACT_HEAD = ["method", "tuned", "settings", "tensors", "excluded"]
EXACT_HEAD += ["error", "float64", "of the change", "bound", "holds"]
BETWEEN = """

The error of a tensor is ‖ours − theirs‖ relative to the norm of mergekit's merged tensor ("error") and of its change
from the base ("of the change"); the table shows the maximum over tensors. float32 rounds a value by 6e-8. For methods
that use angles, mergekit also computes in float64 and rounds once (`dtype: float64`, `out_dtype: float32`); the bound
then applies to that error ("float64"), since the error in float32 includes mergekit's own sums in float32. Mooring
always sums in float64.

Excluded are the cases in which the two programs differ by design: mergekit's SLERP uses Linear if the cosine exceeds
0.9995, which is true for every tensor of `tuned`; its Model Stock does not clamp the ratio to [0, 1]; and if several
entries have exactly the magnitude of a threshold and only some of them are kept, mergekit's sort, which is not stable,
keeps any of them, while Mooring chooses by position.

Methods that drop entries at random use different random numbers in each program, so the means and variances are
compared: <x, δ>/‖δ‖² and ‖x − δ‖²/‖δ‖², where δ is the change and x = (merged − base)/λ the sparsified change, averaged
over the matrices of all layers. Both programs rescale as mergekit does (`rescale="l1"`). The column "apart" is the
larger difference of the two, in standard errors of the difference over these matrices.

"""
RANDOM_HEAD = ["method", "tuned", "settings", "ours", "mergekit", "formula", "apart", "holds"]


def main() -> None:
    """Merge, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", default="mergekit-yaml", help="path of mergekit-yaml")
    parser.add_argument("--work", type=Path, default=None, help="folder for the models, kept; a temporary one without")
    parser.add_argument("--only", default=None, help="methods, separated by commas")
    parser.add_argument("--write", action="store_true", help="write docs/parity.md")
    args = parser.parse_args()
    program = mergekit_env.executable(args.mergekit)
    assert program
    wanted = args.only.split(",") if args.only else [case.method for case in EXACT]
    with tempfile.TemporaryDirectory() as temporary:
        both = Both(program, args.work or Path(temporary))
        if not (both.models / "far" / "config.json").is_file():
            run([sys.executable, str(HERE / "tuned_models.py"), str(both.models)])
        exact, bad, worst = [EXACT_HEAD], False, (0.0, "nothing compared")
        for row, case, found in exact_rows(both, [case for case in EXACT if case.method in wanted]):
            print(" | ".join(row), f"({found.worst})", flush=True)
            exact.append(row)
            bad |= not found.relative <= case.bound
            worst = max(
                worst, (found.relative / case.bound, f"{case.method}: {found.relative:.1e} of {case.bound:.0e}")
            )
        random = [RANDOM_HEAD]
        for row, holds in random_rows(both, [case for case in RANDOM if case.method in wanted]):
            print(" | ".join(row), flush=True)
            random.append(row)
            bad |= not holds
        for folder in (both.ours, both.theirs):
            shutil.rmtree(folder, ignore_errors=True)
    last = f"Largest error relative to its bound: {worst[1]}, {worst[0]:.2f} of it"
    page = f"{INTRO}{versions(program)}\n\n{table(exact)}{BETWEEN}{table(random)}\n\n{last}\n"
    if args.write:
        (HERE.parent / "docs" / "parity.md").write_text(page, encoding="utf-8")
    print(f"\n{page}", end="")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
