"""Stop strings: where a response is cut, and which single tokens already hold one."""

from collections.abc import Callable, Sequence
from typing import Any


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first stop string in it, without that string; empty ones are passed over.

    One after the other, as lm-eval does it: it matters where two stop strings overlap.
    """
    for stop in until:
        if stop:
            text = text.split(stop)[0]
    return text


class StopTokens:
    """The tokens of a vocabulary whose text holds a stop string: with one of them a response is over.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._found: dict[tuple[str, ...], frozenset[int]] = {}

    def of(self, until: Sequence[str]) -> frozenset[int]:
        """The tokens that hold one of these strings."""
        wanted = tuple(stop for stop in until if stop)
        if wanted not in self._found:
            if not self._texts:
                self._texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
            self._found[wanted] = frozenset(
                token for token, text in enumerate(self._texts) if any(stop in text for stop in wanted)
            )
        return self._found[wanted]

    def spelled(self, until: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """Whether the last of a row's tokens spell one of these strings, over however many of them it is spread."""
        wanted = [stop for stop in until if stop]
        # A character takes a token at most four times (a byte each); a window that is too long costs only time.
        span = 4 * max(map(len, wanted), default=0)
        return lambda made: any(stop in self._tokenizer.decode(list(made[-span:])) for stop in wanted)
