"""Check that pip finds versions for every extra of mooring, from the package index, without installing them.

All extras are resolved together: versions that satisfy all of them satisfy each. Only if that fails, they are resolved
one by one, to say which extra cannot be installed.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "transformers", "vllm", "trl", "peft", "lm_eval", "bert-score", "mergekit")
"""Packages whose chosen versions are printed."""


def main() -> None:
    """Print what pip would install, or why it would not; exit with 1 in that case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = sorted(project["optional-dependencies"])
    with tempfile.TemporaryDirectory() as folder:
        python = new_environment(Path(folder))
        found, why = resolve(python, extras, Path(folder))
        if not why:
            print(f"extras that can be installed together: {', '.join(extras)}")
            print("newest versions that fit:", ", ".join(f"{name} {found[name]}" for name in SHOWN))
            return
        print(f"extras that cannot be installed together: {', '.join(extras)}\n{why}")
        for extra in extras:
            _, why = resolve(python, [extra], Path(folder))
            print(f"mooring[{extra}] cannot be installed:\n{why}" if why else f"mooring[{extra}] can be installed")
    sys.exit(1)


def new_environment(folder: Path) -> Path:
    """The Python of an empty environment with the newest pip; pip before 23.3 downloads all that it would install."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], check=True)
    return python


def resolve(python: Path, extras: list[str], folder: Path) -> tuple[dict[str, str], str]:
    """The versions that pip would install for these extras, and its error, which is empty if there is none."""
    report = folder / "report.json"
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--prefer-binary", "--report", report]
    done = subprocess.run([*command, f"{ROOT}[{','.join(extras)}]"], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        return {}, "\n".join(f"    {line}" for line in lines if line)
    chosen = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {item["name"]: item["version"] for item in chosen}, ""


if __name__ == "__main__":
    main()
