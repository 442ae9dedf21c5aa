"""Who may import whom (docs/architecture.md), and how little the light parts load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mooring

SOURCE = Path(mooring.__file__).parent
GROUND = {
    "attacks",
    "baselines",
    "bounded",
    "calls",
    "errors",
    "jsonio",
    "records",
    "config",
    "stats",
    "files",
    "text",
    "chat",
    "correction",
    "hub",
    "labels",
    "latent_class",
    "ledger",
    "sampling",
    "events",
    "engines",
    "export",
    "memory",
    "metrics",
    "merge_methods",
    "merge_point",
    "options",
    "plugins",
    "printable",
    "quiet",
    "template_limits",
    "thinking",
}
FIRST = {"models", "data"}
STAGES = {"training", "merging", "inference", "scoring", "selection", "reporting"}
ALLOWED = {
    **dict.fromkeys(GROUND, GROUND),
    "models": GROUND | {"models"},
    "data": GROUND | {"models", "data"},
    **{stage: GROUND | FIRST | {stage} for stage in STAGES},
    "pipeline": GROUND | FIRST | STAGES | {"pipeline"},
    "api": GROUND | FIRST | STAGES | {"pipeline", "api"},
    "cli": GROUND | FIRST | STAGES | {"pipeline", "api", "cli", ""},
    "__main__": {"cli"},
    "__init__": GROUND | FIRST | STAGES | {"pipeline", "api"},
}
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "matplotlib", "pydantic", "numpy")


def parts(path: Path) -> str:
    """The part of the package that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mooring":
            names = [f"mooring.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {(*name.split("."), "")[1] for name in names if name.split(".")[0] == "mooring"}
    return found


def test_imports_go_down_only() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        part = parts(path)
        assert part in ALLOWED, f"{part} is not in docs/architecture.md"
        assert not imported(path) - ALLOWED[part], path


def loaded(code: str) -> set[str]:
    """The top-level modules that are loaded after some code ran, in a fresh Python."""
    probe = f"{code}\nimport sys\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import mooring") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import contextlib, sys\n"
        "from mooring.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
    )
    assert not loaded(code) & set(HEAVY)


def test_the_ground_loads_no_torch() -> None:
    code = "\n".join(f"import mooring.{part}" for part in sorted(GROUND))
    assert not loaded(code) & {"torch", "transformers", "peft", "trl", "datasets"}


def test_merge_select_and_report_work_without_transformers_peft_and_trl() -> None:
    code = "\n".join(
        f"import mooring.{'.'.join(path.relative_to(SOURCE).with_suffix('').parts).removesuffix('.__init__')}"
        for part in ("merging", "selection", "reporting")
        for path in sorted((SOURCE / part).rglob("*.py"))
    )
    assert not loaded(code) & {"transformers", "peft", "trl", "datasets", "accelerate"}


@pytest.mark.slow
def test_every_module_can_be_imported_by_its_dotted_name() -> None:
    """No function shadows a package or module: `import mooring.merging.merge as m` works."""
    names = [
        "mooring." + ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name not in ("__main__.py",) and path != SOURCE / "__init__.py"
    ]
    code = "\n".join(f"import {name} as m\nassert m.__name__ == {name!r}, m" for name in names)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()
