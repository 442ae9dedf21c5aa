"""A run on several GPUs or machines: its work cut into units, a queue of them, and workers on Ray."""
