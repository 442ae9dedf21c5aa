"""Merging: θ = (1−λ)·base + λ·tuned and related methods, streamed from folder to folder in bounded memory.

`pair.open_pair` opens and checks the models once; `merge`, `inspect` and `in_memory` use them, and `methods` lists the
formulas. Importing this package loads no torch; its modules do.
"""
