"""A fresh sandbox for every program that a model wrote (bubblewrap), and a verdict that the program can't forge."""

from mooring.scoring.sandbox.run import (
    UNSAFE_NOTICE,
    Limits,
    Outcome,
    Program,
    SandboxError,
    Status,
    require,
    run_programs,
)

__all__ = ["UNSAFE_NOTICE", "Limits", "Outcome", "Program", "SandboxError", "Status", "require", "run_programs"]
