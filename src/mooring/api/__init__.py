"""The verbs, as plain functions: what the command line offers, and nothing that it does not.

A model is a folder (checkpoint or LoRA adapter), a GGUF file, a hub id or a bundled model; a data set is a file, a
hub id, a named set (`advbench`) or a bundled one (`bundled:harmful`). Heavy libraries load inside the functions.
"""

from mooring.api.comparing import as_prompt, compare, open_comparison, paper
from mooring.api.measuring import generate, lm_eval, prefer, rejudge, score
from mooring.api.merging import export_mergekit, inspect, merge, merge_job, push, verify
from mooring.api.running import bundled_recipe, report, run, safeguard, safeguard_recipe, select, tune, with_selecting

__all__ = [
    "as_prompt",
    "bundled_recipe",
    "compare",
    "export_mergekit",
    "generate",
    "inspect",
    "lm_eval",
    "merge",
    "merge_job",
    "open_comparison",
    "paper",
    "prefer",
    "push",
    "rejudge",
    "report",
    "run",
    "safeguard",
    "safeguard_recipe",
    "score",
    "select",
    "tune",
    "verify",
    "with_selecting",
]
