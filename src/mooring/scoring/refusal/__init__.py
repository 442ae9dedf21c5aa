"""Refusals by wording alone, without a judge model: a classifier, and a list of phrases that can be read."""

from mooring.scoring.refusal.rules import Answer, Decision, decide

__all__ = ["Answer", "Decision", "decide"]
