"""The refusal rules: whether a response refuses, by its wording alone. No model is needed."""

from mooring.scoring.refusal.rules import JUDGE, Decision, decide, judge

__all__ = ["JUDGE", "Decision", "decide", "judge"]
