"""Splits and draws: properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.data.splits import draw, split_prompts
from mooring.errors import DataError
from mooring.records import Message, Prompt


def prompts(texts):
    return [Prompt(id=str(n), messages=(Message("user", t),), origin=f"f:{n}") for n, t in enumerate(texts)]


def texts(side):
    return {p.messages[0].content for p in side}


some = st.lists(st.text(alphabet="abc", max_size=3), min_size=2, max_size=40).filter(lambda t: len(set(t)) > 1)
shares = st.floats(0.01, 0.99)


@given(some, shares, st.integers(0, 10**6))
def test_two_splits_are_a_partition_without_a_shared_text(words, share, seed):
    given_ = prompts(words)
    validation, test = split_prompts(given_, share, seed)
    assert validation
    assert test
    assert not texts(validation) & texts(test)
    assert sorted([*validation, *test], key=lambda p: int(p.id)) == given_
    assert validation == sorted(validation, key=lambda p: int(p.id))
    assert abs(len(texts(validation)) - share * len(set(words))) <= 1


@given(some, shares, st.integers(0, 9), st.randoms())
def test_order_of_rows_does_not_matter(words, share, seed, rng):
    before = split_prompts(prompts(words), share, seed)
    shuffled = list(words)
    rng.shuffle(shuffled)
    after = split_prompts(prompts(shuffled), share, seed)
    assert [texts(side) for side in before] == [texts(side) for side in after]


def test_same_seed_same_split_other_seed_other_split():
    given_ = prompts(f"question {n}" for n in range(100))
    first = split_prompts(given_, 0.5, 42)
    assert first == split_prompts(given_, 0.5, 42)
    validation, _ = split_prompts(given_, 0.5, 43)
    assert 15 <= len(texts(validation) & texts(first[0])) <= 35  # of 50; independent: about half
    assert [len(side) for side in split_prompts(given_, 0.2, 1)] == [20, 80]


def test_ids_do_not_decide_the_side():
    given_ = prompts(f"question {n}" for n in range(20))
    renamed = prompts([""] * 50 + [p.messages[0].content for p in given_])[50:]
    assert texts(split_prompts(given_, 0.5, 1)[0]) == texts(split_prompts(renamed, 0.5, 1)[0])


def test_prompts_that_differ_only_in_case_spacing_or_unicode_form_stay_on_one_side():
    variants = ["Is it on?", "is it ON?", "Is  it\non? ", "Is it on？"]
    rest = [f"question {n}" for n in range(30)]
    for seed in range(20):
        sides = split_prompts(prompts(variants + rest), 0.5, seed)
        assert sorted(len(texts(side) & set(variants)) for side in sides) == [0, 4]


def test_the_side_of_alike_prompts_does_not_depend_on_their_order():
    words = [text for n in range(20) for text in (f"question {n}", f"QUESTION {n}")]
    turned = [text for n in range(20) for text in (f"QUESTION {n}", f"question {n}")]
    for seed in range(10):
        sides = [[texts(side) for side in split_prompts(prompts(given_), 0.5, seed)] for given_ in (words, turned)]
        assert sides[0] == sides[1]


@pytest.mark.parametrize("words", [[], ["a"], ["a", "a", "a"], ["a", "A ", "\ta"]])
def test_fewer_than_two_different_prompts_cannot_be_split(words):
    with pytest.raises(DataError) as caught:
        split_prompts(prompts(words), 0.5, 1)
    assert caught.value.code == "data.cannot_split"


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_share_out_of_range_is_a_bug(share):
    with pytest.raises(ValueError, match="not between 0 and 1"):
        split_prompts(prompts("ab"), share, 1)


@given(some, st.integers(1, 50), st.integers(1, 50), st.integers(0, 9))
def test_draws_are_ordered_exact_and_nested(words, few, many, seed):
    few, many = sorted((few, many))
    given_ = prompts(words)
    small, large = draw(given_, few, seed), draw(given_, many, seed)
    assert len(small) == min(few, len(given_))
    assert [p.id for p in small] == sorted((p.id for p in small), key=int)
    assert {p.id for p in small} <= {p.id for p in large} <= {p.id for p in given_}


def test_a_draw_depends_on_the_seed_and_counts_a_repeated_record():
    given_ = prompts(f"question {n}" for n in range(50))
    assert draw(given_, 10, 1) == draw(given_, 10, 1) != draw(given_, 10, 2)
    assert {p.id for p in draw(given_[::-1], 10, 1)} == {p.id for p in draw(given_, 10, 1)}
    assert len(draw([given_[0]] * 4, 2, 1)) == 2
