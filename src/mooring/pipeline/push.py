"""Upload a merged model with its card: that of the run which chose it, or that of a single merge."""

from collections.abc import Sequence
from pathlib import Path

from mooring import bounded
from mooring.errors import ModelError, UserError
from mooring.files import atomic_text
from mooring.merging.verify import check_passed
from mooring.models import MANIFEST, is_adapter, read_json, upload
from mooring.models.resolve import hub_name
from mooring.reporting.model_card import license_of, merge_card, run_card
from mooring.reporting.results import load


def push(
    folder: Path, hub_id: str, *, base: str, tuned: Sequence[str], command: str | None, private: bool, overwrite: bool
) -> str:
    """Write the card into the folder and upload both; arguments and errors as in `mooring.push`."""
    upload.check_push(hub_id, private=private)
    if not (folder / MANIFEST).is_file():
        problem = f"{folder}: has no {MANIFEST}, so it was not merged by Mooring"
        raise ModelError(problem, "name a merged model's folder", code="model.not_merged")
    manifest = read_json(folder / MANIFEST, bounded.MANIFEST)
    check_passed(folder, manifest)
    count = len(manifest["tuned"])
    if tuned and len(tuned) != count:
        problem = f"{folder}: was merged from {count} tuned models, not {len(tuned)}"
        raise UserError(problem, "name each of them, or none", code="usage.wrong_count")
    terms = license_of(Path(base)) if base and Path(base).is_dir() else None
    measured = folder.parent / "report" / "results.json"
    if folder.name == "model" and measured.is_file():  # the model of a run, with its numbers
        text = run_card(load(measured), terms=terms)
    else:
        text = merge_card(
            manifest,
            title=hub_id.partition("/")[2] or hub_id,
            base_ref=hub_name(base) if base else None,
            tuned_refs=[hub_name(ref) for ref in tuned] or [None] * count,
            command=command,
            terms=terms,
            adapter=is_adapter(folder),
        )
    atomic_text(folder / "README.md", text)
    return upload.push(folder, hub_id, private=private, overwrite=overwrite)
