"""Ask a model: engines behind one protocol, and completions kept as they are made."""
