"""The models of a run as engines: a base and a tuned model that answer at any point of their merge."""
