"""Best of n: many samples of one request, of which the worst answer counts."""

import random
from collections.abc import Sequence

from mooring.attacks.attack import Technique, asking, request_of, whole_number
from mooring.records import Prompt

STRENGTH = 0.4
"""σ of the paper: words are scrambled with probability √σ, letters change case with √σ, and symbols move with σ³."""
LEAST = 4
"""Characters of the shortest word whose middle is scrambled."""


def augment(text: str, rng: random.Random) -> str:
    """A text with scrambled words, random capitals and moved symbols: the augmentations of Hughes et al., section 2.

    The middle of each longer word is shuffled with probability √σ, each letter changes case with √σ, and each printable
    ASCII character moves one place up or down with σ³.
    """
    words = [_scramble(word, rng) if rng.random() < STRENGTH**0.5 else word for word in text.split(" ")]
    cased = [
        character.swapcase() if character.isalpha() and rng.random() < STRENGTH**0.5 else character
        for character in " ".join(words)
    ]
    return "".join(_move(character, rng) if rng.random() < STRENGTH**3 else character for character in cased)


def _scramble(word: str, rng: random.Random) -> str:
    if len(word) < LEAST:
        return word
    middle = list(word[1:-1])
    rng.shuffle(middle)
    return f"{word[0]}{''.join(middle)}{word[-1]}"


def _move(character: str, rng: random.Random) -> str:
    code = ord(character) + rng.choice((-1, 1))
    return chr(code) if "!" <= character <= "~" and ord("!") <= code <= ord("~") else character


def _best_of_n(prompt: Prompt, n: int, rng: random.Random) -> Sequence[Prompt]:
    return [asking(prompt, augment(request_of(prompt), rng)) for _ in range(n)]


def _samples(prompt: Prompt, n: int, rng: random.Random) -> Sequence[Prompt]:
    return [prompt] * n


N = whole_number("N: answers per prompt", 2, 1000, 10)
BEST_OF_N = Technique(
    name="best_of_n",
    what="N answers at temperature 1, each to the request with words scrambled, letters in random case and symbols "
    "moved, by seed.",
    source="Hughes et al. 2024, Best-of-N Jailbreaking, arXiv:2412.03556",
    apply=_best_of_n,
    option=N,
    several=True,
    temperature=1.0,
)
SAMPLES = Technique(
    name="samples",
    what="N answers at temperature 1 to the request as it is.",
    source="Huang et al. 2023, Catastrophic Jailbreak of Open-source LLMs via Exploiting Generation, arXiv:2310.06987",
    apply=_samples,
    option=N,
    several=True,
    temperature=1.0,
)
