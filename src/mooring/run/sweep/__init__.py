"""One model in memory for all λ: weights that change in place, and the models of a run, one at a time."""
