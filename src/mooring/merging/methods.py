"""The implementation of every merge method, by name. `mooring.merge_methods` declares their options and limits.

All arithmetic is in float32, or in float64 if an input is. Sums over a tensor are accumulated in float64, one partial
sum per cell of a fixed grid, and added exactly, so results do not depend on slicing or threading. No method reads or
writes a file.
"""

from collections.abc import Mapping

from mooring.merge_methods import METHODS
from mooring.merging import dense, safety, selected, sparse
from mooring.merging.plan import Formula

FORMULAS: Mapping[str, Formula] = {
    "linear": dense.linear,
    "task_arithmetic": dense.task_arithmetic,
    "lines": dense.lines,
    "slerp": dense.slerp,
    "model_stock": dense.model_stock,
    "karcher": dense.karcher,
    "ties": sparse.ties,
    "dare_linear": sparse.dare_linear,
    "dare_ties": sparse.dare_ties,
    "della": sparse.della,
    "della_linear": sparse.della_linear,
    "breadcrumbs": sparse.breadcrumbs,
    "breadcrumbs_ties": sparse.breadcrumbs_ties,
    "nuslerp": dense.nuslerp,
    "multislerp": dense.multislerp,
    "nearswap": selected.nearswap,
    "sce": selected.sce,
    "arcee_fusion": selected.arcee_fusion,
    "chat_vector": safety.chat_vector,
    "resta": safety.resta,
    "lox": safety.lox,
    "lssf": safety.lssf,
    "safe_lora": safety.safe_lora,
    "safe_merge": safety.safe_merge,
    "intruders": safety.intruders,
}
"""The implementation of every method that is built in."""


def formula(name: str) -> Formula:
    """The implementation of a method, which a plug-in brings along."""
    return FORMULAS[name] if name in FORMULAS else METHODS[name].implementation or FORMULAS[name]
