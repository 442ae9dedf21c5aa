"""Score what models answered: safety from verdicts, tasks from references."""
