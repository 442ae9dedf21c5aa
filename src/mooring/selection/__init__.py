"""From trials to λ, with the reason. Pure: numbers in, a choice out."""
