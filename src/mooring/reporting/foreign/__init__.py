"""The answers and scores of a run in the formats of other tools."""
