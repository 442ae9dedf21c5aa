"""Merging: θ = (1−λ)·base + λ·tuned and its kin, streamed from folder to folder in bounded memory.

`stream.merge` does it, `rules` has the formulas, `together.belong_together` says whether two models belong together,
and `inspect.inspect` what the tuning changed. Importing this package loads no torch; its modules do.
"""
