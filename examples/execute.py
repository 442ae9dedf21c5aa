"""Execute `safeguard.ipynb` and store its outputs in it; `make quickstart` makes the tuned model that it merges.

    python examples/execute.py

Needs nbclient and ipykernel (extra `dev`). Progress bars are left out of what is stored, and so is what libraries log.
"""

import hashlib
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).with_name("safeguard.ipynb")


def sources(notebook: Any) -> str:
    """A digest of what the notebook says, by which its outputs are known to be up to date."""
    cells = "\0".join(cell.source for cell in notebook.cells)
    return hashlib.sha256(cells.encode()).hexdigest()


def main() -> None:
    """Execute the notebook in the current folder, and store its outputs."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.output_type in ("execute_result", "display_data")]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sources": sources(notebook),
    }
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
