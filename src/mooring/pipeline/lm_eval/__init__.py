"""Any task of lm-evaluation-harness, on a base, a tuned model, or a merge at any λ that is never written to disk."""
