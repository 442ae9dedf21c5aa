"""Estimates of memory and time with vLLM for docs/engines.md: arithmetic on stated assumptions, not measurements.

python benchmarks/engine_sizes.py
"""

import dataclasses

from timing import table

GIB = 2**30
SHARE = 0.9  # of a GPU's memory that vLLM may use (`gpu_memory`)
OTHER = 1.5 * GIB  # activations, CUDA graphs and libraries, on each GPU
ADAPTERS, RANK = 8, 8  # adapters in one batch, and their rank: all linear layers, in 16 bits
PROMPT, ANSWER, LONGEST = 100, 250, 512  # tokens: of a prompt, of a response on average, of the longest response
AT_ONCE = 256  # responses in one batch, at most
EFFICIENCY = 0.5  # of the GPU's stated bandwidth and of its stated 16-bit operations
SYNC = 3e-3  # seconds that a step of several GPUs waits for the slowest
WITH_ADAPTERS = 1.3  # times as long to answer with adapters in the batch
DISK = 2e9  # bytes per second
READY = 60.0  # seconds from loaded weights to the first token: compilation, CUDA graphs
MERGED = 1.4e9  # parameters per second that one worker merges
TO_GPU = 10e9  # bytes per second
PROMPTS, GRID = 1000, 5  # of each half, and the number of λ


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the Llama family."""

    name: str
    parameters: float
    layers: int
    hidden: int
    inner: int
    kv: int = 1024

    @property
    def weights(self) -> float:
        """Bytes of the weights in 16 bits."""
        return 2 * self.parameters

    @property
    def cache(self) -> int:
        """Bytes of keys and values of one token in 16 bits."""
        return 2 * self.layers * self.kv * 2

    @property
    def adapter(self) -> float:
        """Bytes of one adapter: A and B of q, k, v, o, gate, up and down in every layer."""
        sizes = [(self.hidden, self.hidden)] * 2 + [(self.hidden, self.kv)] * 2 + [(self.hidden, self.inner)] * 3
        return 2.0 * RANK * self.layers * sum(a + b for a, b in sizes)


@dataclasses.dataclass(frozen=True)
class Machine:
    """GPUs that share a model."""

    name: str
    memory: float
    bandwidth: float
    operations: float
    gpus: int = 1


LLAMA_8B = Model("8B", 8.03e9, 32, 4096, 14336)
LLAMA_70B = Model("70B", 70.55e9, 80, 8192, 28672)
CASES = [
    (LLAMA_8B, Machine("24 GB (RTX 4090)", 24 * GIB, 1.008e12, 165e12)),
    (LLAMA_8B, Machine("48 GB (L40S)", 48 * GIB, 0.864e12, 362e12)),
    (LLAMA_8B, Machine("80 GB (H100)", 80 * GIB, 3.35e12, 989e12)),
    (LLAMA_70B, Machine("8 × 80 GB (H100)", 80 * GIB, 3.35e12, 989e12, gpus=8)),
]


def room(model: Model, machine: Machine) -> tuple[float, int]:
    """What is left on each GPU for keys and values, in bytes, and the tokens that all GPUs together hold."""
    left = SHARE * machine.memory - model.weights / machine.gpus - ADAPTERS * model.adapter - OTHER
    return left, int(left / (model.cache / machine.gpus))


def speed(model: Model, machine: Machine) -> tuple[int, float]:
    """Responses at the same time, and tokens per second: each step reads all weights and all keys and values."""
    at_once = min(AT_ONCE, room(model, machine)[1] // (PROMPT + LONGEST))
    read = model.weights + at_once * (PROMPT + ANSWER / 2) * model.cache
    step = read / (machine.gpus * machine.bandwidth * EFFICIENCY) + (SYNC if machine.gpus > 1 else 0)
    return at_once, at_once / step


def times(model: Model, machine: Machine) -> list[float]:
    """Seconds: of a start, of a change of λ in place, of answering, and of a run in three ways."""
    start = model.weights / DISK + READY
    change = model.parameters / MERGED + model.weights / machine.gpus / TO_GPU
    halves = GRID + 2 + 3  # all models on validation; base, chosen and tuned on test
    prefill = PROMPT * 2 * model.parameters / (machine.gpus * machine.operations * EFFICIENCY)
    answering = halves * PROMPTS * (prefill + ANSWER / speed(model, machine)[1])
    written = (GRID + 1) * 3 * model.weights / DISK  # each λ and the tuned model: two models read, one written
    adapters = start + WITH_ADAPTERS * answering
    in_place = start + 2 * model.weights / DISK + (halves - 1) * change + answering
    return [start, change, answering, adapters, in_place, halves * start + written + answering]


def main() -> None:
    """Print both tables."""
    rows = [["", "weights", "8 adapters", "left for keys and values", "per token", "tokens", "context of 131,072"]]
    for model, machine in CASES:
        left, tokens = room(model, machine)
        cells = [f"{model.weights / machine.gpus / GIB:.1f} GiB", f"{ADAPTERS * model.adapter / GIB:.1f} GiB"]
        cells += [f"{left / GIB:.1f} GiB", f"{model.cache / machine.gpus / 1024:.0f} KiB", f"{tokens:,}"]
        rows.append([f"{model.name} on {machine.name}", *cells, "fits" if tokens > 131_072 else "does not fit"])
    print("On each GPU:\n\n" + table(rows) + "\n")
    head = ["", "at once", "tokens/s", "start", "λ in place", "answering"]
    rows = [[*head, "run: adapters", "run: in place", "run: an engine for each model"]]
    for model, machine in CASES:
        start, change, *others = times(model, machine)
        at_once, rate = speed(model, machine)
        cells = [f"{at_once}", f"{round(rate, -2):,.0f}", f"{start:.0f} s", f"{change:.0f} s"]
        rows.append([f"{model.name} on {machine.name}", *cells, *(f"{value / 60:.0f} min" for value in others)])
    print(table(rows))


if __name__ == "__main__":
    main()
