"""The paper's tables and figures over a folder of runs."""
