"""What this installation can do: packages that import, the GPU, the sandbox, the hub, room on the disk."""

import dataclasses
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from mooring.errors import UserError
from mooring.export import Record
from mooring.files import gibibytes
from mooring.printable import shorten

Status = Literal["ok", "missing", "broken"]
TIMEOUT = 120.0
"""Seconds for importing the packages of one extra; large ones take half a minute from a cold disk."""
LITTLE = 10 * 2**30
"""Bytes of free disk below which hardly a model fits."""
NOT_FOR_USERS = ("dev", "peers")
"""Extras for developing Mooring."""
_OTHER_NAMES = {"pyyaml": "yaml"}
"""Modules that have another name than their package, where the package is not installed to ask."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """What the doctor found of one thing.

    Attributes:
        name: What was looked at: `mooring`, an extra, `gpu`, `sandbox`, `hub` or `disk`.
        status: `ok`, `missing`, or `broken` where it is there and does not work.
        detail: Versions, or what is wrong.
        fix: How to get it; empty if it works.
        needed: Whether Mooring does not work at all without it.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    needed: bool = False


def examine(timeout: float = TIMEOUT) -> list[Finding]:
    """Look at everything, several at a time; each package is really imported, in a process of its own."""
    looks: list[Callable[[], Finding]] = [
        *(_look_at(name, packages, timeout) for name, packages in requirements().items()),
        lambda: gpu(timeout),
        sandbox,
        hub,
        disk,
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda look: look(), looks))


def _look_at(name: str, packages: Sequence[str], timeout: float) -> Callable[[], Finding]:
    return lambda: imports(name, packages, timeout)


# --- Packages ---


def requirements() -> dict[str, list[str]]:
    """The packages that Mooring needs (`mooring`), and those of each extra, as the installed metadata lists them."""
    from packaging.requirements import Requirement

    needs: dict[str, list[Requirement]] = {"mooring": []}
    for requirement in map(Requirement, importlib.metadata.requires("mooring") or ()):
        extra = re.search(r"extra == [\"']([\w-]+)[\"']", str(requirement.marker or ""))
        if extra is None or extra[1] not in NOT_FOR_USERS:
            needs.setdefault(extra[1] if extra else "mooring", []).append(requirement)
    packages = {name: [each.name for each in found if each.name != "mooring"] for name, found in needs.items()}
    return {name: found for name, found in packages.items() if found}  # an extra of extras alone says nothing new


def imports(name: str, packages: Sequence[str], timeout: float, env: Mapping[str, str] | None = None) -> Finding:
    """Import packages in a process of its own, so that one that crashes or hangs harms nothing.

    Args:
        name: The extra; `mooring` for what is always needed.
        packages: Names of distributions.
        timeout: Seconds until the process is ended.
        env: The environment of the process; by default ours.
    """
    needed = name == "mooring"
    fix = "pip install --upgrade mooring" if needed else f"pip install 'mooring[{name}]'"
    code = _IMPORT.format(packages=list(packages), other=_OTHER_NAMES)
    try:
        done = _python(code, timeout, env)
    except subprocess.TimeoutExpired:
        detail = f"importing {', '.join(packages)} took more than {timeout:g} s"
        return Finding(
            name=name, status="broken", detail=detail, fix="try again; a first import is slow", needed=needed
        )
    found = _last_json(done.stdout)
    if found is None:
        detail = f"the import ended the process (exit code {done.returncode}): {_last_line(done.stderr)}"
        return Finding(name=name, status="broken", detail=detail, fix=fix, needed=needed)
    if found["absent"]:
        detail = f"not installed: {', '.join(found['absent'])}"
        return Finding(name=name, status="missing", detail=detail, fix=fix, needed=needed)
    if found["failed"]:
        return Finding(name=name, status="broken", detail=shorten(found["failed"], 200), fix=fix, needed=needed)
    shown = found["versions"] if not needed else {p: v for p, v in found["versions"].items() if p in _SHOWN}
    detail = ", ".join(f"{package} {version}" for package, version in shown.items())
    return Finding(name=name, status="ok", detail=detail, needed=needed)


_SHOWN = ("torch", "transformers", "peft", "trl", "safetensors", "huggingface_hub")
_IMPORT = """
import importlib, importlib.metadata as metadata, json
of = {{}}
for module, names in metadata.packages_distributions().items():
    for name in names:
        of.setdefault(name.lower().replace("_", "-"), []).append(module)
out = {{"versions": {{}}, "absent": [], "failed": ""}}
for package in {packages}:
    try:
        out["versions"][package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        out["absent"].append(package)
if not out["absent"]:
    for package in {packages}:
        plain = package.lower().replace("_", "-")
        own = plain.replace("-", "_")
        modules = of.get(plain, [])
        module = own if own in modules else {other}.get(plain) or (modules or [own])[0]
        try:
            importlib.import_module(module)
        except BaseException as error:
            out["failed"] = f"{{package}}: {{type(error).__name__}}: {{error}}"
            break
print()
print(json.dumps(out))
"""


# --- The machine ---


def gpu(timeout: float) -> Finding:
    """The accelerators that torch can use, and their memory. Without one, all works, slowly."""
    try:
        found = _last_json(_python(_GPU, timeout).stdout)
    except subprocess.TimeoutExpired:
        return Finding(name="gpu", status="broken", detail=f"torch did not answer within {timeout:g} s", fix=_DRIVER)
    if found is None:
        return Finding(name="gpu", status="broken", detail="torch could not be imported", fix=_DRIVER)
    if found["devices"]:
        return Finding(name="gpu", status="ok", detail=", ".join(found["devices"]))
    there = shutil.which("nvidia-smi") is not None
    detail = f"torch {found['torch']} finds none; models run on the CPU" + (", though nvidia-smi is here" * there)
    return Finding(name="gpu", status="broken" if there else "missing", detail=detail, fix=_DRIVER)


_DRIVER = "install torch for your driver: https://pytorch.org/get-started/locally"
_GPU = """
import json, torch
devices = []
for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    about = torch.cuda.get_device_properties(number)
    torch.ones(2, device=f"cuda:{number}").sum().item()
    devices.append(f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
if not devices and torch.backends.mps.is_available():
    torch.ones(2, device="mps").sum().item()
    devices.append("Apple GPU (mps)")
print()
print(json.dumps({"torch": torch.__version__, "devices": devices}))
"""


def sandbox() -> Finding:
    """Whether model-written programs can be run apart from the system."""
    from mooring.scoring.sandbox import run

    try:
        run.require()
    except UserError as error:
        status: Status = "missing" if shutil.which("bwrap") is None else "broken"
        fix = "apt install bubblewrap (needed only to score code)" if status == "missing" else error.hint
        return Finding(name="sandbox", status=status, detail=error.message, fix=fix)
    return Finding(name="sandbox", status="ok", detail="bubblewrap works")


def hub() -> Finding:
    """Whether the Hugging Face hub answers, and as whom."""
    from huggingface_hub import constants, get_token, whoami

    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE to download models and data sets"
        return Finding(name="hub", status="missing", detail="HF_HUB_OFFLINE is set: only the cache is used", fix=fix)
    try:
        import httpx2

        httpx2.head(constants.ENDPOINT, timeout=10, follow_redirects=True).raise_for_status()
    except Exception as error:  # whatever a proxy or a firewall makes of it
        detail = f"{constants.ENDPOINT} is out of reach ({shorten(str(error) or type(error).__name__)})"
        return Finding(name="hub", status="broken", detail=detail, fix="check the network, HTTPS_PROXY and HF_ENDPOINT")
    if get_token() is None:
        fix = "hf auth login (needed only for gated models and data sets)"
        return Finding(name="hub", status="ok", detail=f"{constants.ENDPOINT} answers; not logged in", fix=fix)
    try:
        name = whoami()["name"]
    except Exception as error:
        detail = f"the token is refused ({shorten(str(error))})"
        return Finding(name="hub", status="broken", detail=detail, fix="hf auth login")
    return Finding(name="hub", status="ok", detail=f"{constants.ENDPOINT} answers; logged in as {shorten(str(name))}")


def disk(little: int = LITTLE) -> Finding:
    """Room here, where runs are written, and where the hub's client keeps models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {"here": Path.cwd(), "the hub's cache": Path(HF_HUB_CACHE)}
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in places.items()}
    detail = ", ".join(f"{gibibytes(count)} free {'in ' * (name != 'here')}{name}" for name, count in free.items())
    if min(free.values()) < little:
        fix = "free some, run in another folder, or set HF_HOME to another disk"
        return Finding(name="disk", status="broken", detail=detail, fix=fix)
    return Finding(name="disk", status="ok", detail=detail)


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


# --- Processes ---


def _python(code: str, timeout: float, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own.

    Raises:
        subprocess.TimeoutExpired: It took too long, and was ended.
    """
    line = [sys.executable, "-c", code]
    return subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=env)


def _last_json(text: str) -> dict[str, Any] | None:
    """The object on the last line: packages print things of their own when they are imported."""
    try:
        found = json.loads(next(_lines_from_the_end(text)))
    except (StopIteration, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _last_line(text: str) -> str:
    return shorten(next(_lines_from_the_end(text), "no message"), 200)


def _lines_from_the_end(text: str) -> Iterator[str]:
    return (line for line in reversed(text.splitlines()) if line.strip())
