import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring.scoring.function_calls import call_match, parse_call

REFERENCE = "weather.get(city='Oslo', days=5, units=\"metric\")"


@pytest.mark.parametrize(
    "text",
    [
        REFERENCE,
        "weather.get(days=5, units='metric', city='Oslo')",
        "  weather.get( city = 'Oslo' ,days='5',units='metric', )\n",
        "weather.get(city=“Oslo”, days=5.0, units=‘metric’)",
        "weather.get(city='Oslo', days=5, units='metric');",
        "```python\nweather.get(city='Oslo', days=5, units='metric')\n```",
        "```\nweather.get(city='Oslo', days=5, units='metric')\n```",
        "`weather.get(city='Oslo', days=5, units='metric')`",
        '{"name": "weather.get", "arguments": {"city": "Oslo", "days": 5, "units": "metric"}}',
        '<tool_call>\n{"name": "weather.get", "arguments": {"units": "metric", "city": "Oslo", "days": 5}}'
        "\n</tool_call>",
        '[{"name": "weather.get", "parameters": {"city": "Oslo", "days": "5", "units": "metric"}}]',
        '```json\n{"function": {"name": "weather.get", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 5,'
        ' \\"units\\": \\"metric\\"}"}}\n```',
        "weather.get(\n    city='Oslo',\n    days=5,\n    units='metric',\n)",
    ],
)
def test_notations_of_the_same_call(text: str) -> None:
    assert call_match(text, REFERENCE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weather.get",
        "get(city='Oslo', days=5, units='metric')",
        "weather.get(city='Oslo', days=6, units='metric')",
        "weather.get(city='oslo', days=5, units='metric')",
        "weather.get(city='Oslo', days=5)",
        "weather.get('Oslo', 5, 'metric')",
        "weather.get(city='Oslo', days=5, units='metric', extra=1)",
        "weather.get(city='Oslo', city='Oslo', days=5, units='metric')",
        "weather.get(city='Oslo', days=-5, units='metric')",
        f"Here you go: {REFERENCE}",
        f"{REFERENCE}\nThis asks for the weather.",
        f"{REFERENCE}\n{REFERENCE}",
        f"{REFERENCE}; {REFERENCE}",
        f"[{REFERENCE}, {REFERENCE}]",
        f"x = {REFERENCE}",
        "weather.get(**{'city': 'Oslo', 'days': 5, 'units': 'metric'})",
        "weather.get(city=city(), days=5, units='metric')",
        "weather.get(city='Os' + 'lo', days=5, units='metric')",
        "weather.get(city=f'Oslo', days=5, units='metric')",
        '{"name": "weather.get"}',
        '{"name": "weather.get", "arguments": {"city": "Oslo", "city": "Oslo", "days": 5, "units": "metric"}}',
        '{"name": 3, "arguments": {}}',
        "weather.get(city='Oslo', days=5, units='metric'",
    ],
)
def test_other_calls_and_other_texts(text: str) -> None:
    assert not call_match(text, REFERENCE)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("f(a=True)", "f(a=true)"),
        ("f(a=True)", "f(a='true')"),
        ("f(a=None)", "f(a=null)"),
        ("f(a=[1, 2])", "f(a=(1.0, '2'))"),
        ("f(a={'x': [1, {'y': -2}]})", 'f(a={"x": ["1", {"y": -2.0}]})'),
        ("f(a=-3)", "f(a='-3')"),
        ("f(a=1e3)", "f(a=1000)"),
        ("f(a=0.50)", "f(a=.5)"),
        ("f('x', 2)", "f(\"x\", '2')"),
        ("f()", "f( )"),
        ("f(a='it’s  here ')", 'f(a="it\'s here")'),
        ("a.b.c(x=1)", "a.b.c(x=1)"),
    ],
)
def test_equivalent_values(text: str, reference: str) -> None:
    assert call_match(text, reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("f(a=1)", "f(a=True)"),
        ("f(a=0)", "f(a=None)"),
        ("f(a='007')", "f(a=7)"),
        ("f(a=[1, 2])", "f(a=[2, 1])"),
        ("f(1, 2)", "f(2, 1)"),
        ("f(a='1.0.0')", "f(a=1)"),
        ("f(a='')", "f(a=None)"),
        ("f(a=10000000000000001)", "f(a=10000000000000000)"),
        ("f(a=[])", "f(a={})"),
        ("f(a=1)", "F(a=1)"),
        ("no call", "no call"),
    ],
)
def test_different_values(text: str, reference: str) -> None:
    assert not call_match(text, reference)


@pytest.mark.parametrize(
    "text",
    [
        "f(" * 100_000,
        "f(" * 60 + ")" * 60,
        "f(a=" + "[" * 5000 + "]" * 5000 + ")",
        "f(a=" + "-" * 9000 + "1)",
        "f(a=" + "- " * 9000 + "1)",
        "f(a=" + "9" * 5000 + ")",
        "f(a=0x" + "f" * 9000 + ")",
        "f(a=" + "1_0" * 5000 + ")",
        "f(a=1e999999999)",
        "f(a='" + "x" * 1_000_000 + "')",
        "a" + ".a" * 9000 + "()",
        "f(a=" + "not " * 4000 + "1)",
        "f(a=" + "1+" * 9000 + "1)",
        "f(a=" + "lambda:" * 2500 + "1)",
        "f(a=" + "1 if 1 else " * 1500 + "1)",
        "f(a=" + "1**" * 6000 + "1)",
        "f()" + "()" * 9000,
        "f(a=\x00)",
        "f(a='\\ud800')",
        "{" * 19_000,
        '{"name": "f", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001,
        '{"name": "f", "arguments": {"a": ' + "1" * 6000 + "}}",
        "``" * 9000,
        "`" * 19_999,
        "<tool_call>" * 1800,
        "f(a=__import__('os').system('true'))",
        "f(a=b'x')",
        "f(a=...)",
        "f(a=2j)",
    ],
)
def test_hostile_text_is_refused_quickly(text: str) -> None:
    start = time.process_time()
    call = parse_call(text)
    assert time.process_time() - start < 5  # a quadratic search takes minutes
    assert call is None or len(text) < 20_000


def test_a_deep_name_does_not_overflow_the_stack() -> None:
    assert parse_call("a" + ".a" * 9000 + "()") is None


scalars = st.one_of(
    st.integers(), st.booleans(), st.none(), st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[a-z]{1,5}_", fullmatch=True)


@given(st.dictionaries(names, values, max_size=4), st.randoms(use_true_random=False))
def test_a_call_matches_itself_with_its_arguments_shuffled(arguments: dict[str, object], random: object) -> None:
    import json

    order = list(arguments.items())
    random.shuffle(order)  # type: ignore[attr-defined]
    reference = f"a.b({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
    assert call_match(f"a.b({', '.join(f'{k}={v!r}' for k, v in order)})", reference)
    assert call_match(json.dumps({"name": "a.b", "arguments": dict(order)}), reference)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    parse_call(text)
