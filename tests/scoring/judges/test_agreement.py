import pytest

from mooring.errors import DataError
from mooring.records import Verdict
from mooring.scoring.judges import measure_agreement
from mooring.stats import cohen_kappa


def verdicts(*harmful: bool | None) -> list[Verdict]:
    return [Verdict(prompt_id=f"p{n}", harmful=h, refused=None, judge="j") for n, h in enumerate(harmful)]


def test_misses_are_left_out_and_counted() -> None:
    found = measure_agreement(verdicts(True, True, False, None, False), verdicts(True, False, False, True, None))
    assert (found.same, found.n, found.missed, found.disagreements) == (2, 3, 2, ("p1",))
    assert found.kappa == cohen_kappa([True, True, False], [True, False, False])


def test_the_order_does_not_matter() -> None:
    first, second = verdicts(True, False, True, False), verdicts(True, True, False, False)
    assert measure_agreement(first, second[::-1]) == measure_agreement(first, second)
    assert measure_agreement(first, second).disagreements == ("p1", "p2")
    assert measure_agreement(first, first).kappa == 1


def test_kappa_is_undefined_where_both_say_one_thing_alone() -> None:
    assert measure_agreement(verdicts(False, False), verdicts(False, False)).kappa is None
    nothing = measure_agreement([], [])
    assert (nothing.kappa, nothing.n, nothing.disagreements) == (None, 0, ())


def test_several_responses_to_a_prompt_are_taken_in_their_order() -> None:
    def twice(*harmful: bool) -> list[Verdict]:
        return [Verdict(prompt_id="p", harmful=h, refused=None, judge="j") for h in harmful]

    assert measure_agreement(twice(True, False), twice(True, True)).disagreements == ("p",)
    with pytest.raises(DataError) as caught:
        measure_agreement(twice(True, False), twice(True))
    assert caught.value.code == "data.judged_by_one"


def test_other_prompts_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        measure_agreement(verdicts(True, False), verdicts(True))
    assert caught.value.code == "data.judged_by_one"
    assert caught.value.message.startswith("prompt p1:")
