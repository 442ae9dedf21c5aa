"""Limits on what a chat template may compute.

It is a program that comes with a model, and a single operation of it, such as `'a' * 999999999`, could take all memory.
"""

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST = 10_000_000
"""Maximum length of a text or a list that one operation makes; the longest prompts have a few million characters."""
_WIDTH = re.compile(r"\d{7,}")
"""A width or a precision that is too large, in a format string."""
_FILTERS_WITH_WIDTHS = ("batch", "center", "format", "indent", "round", "slice", "tojson", "truncate", "wordwrap")
_LIMITED_FILTERS = (*_FILTERS_WITH_WIDTHS, "join", "replace")
_PLAIN = (str, bytes, int, float, list, tuple)
"""Types with methods that take a width or a count, such as `str.ljust` and `int.to_bytes`."""
_LOCK = threading.Lock()
_MARK = "{{ '' }}"
"""Distinguishes a template from the same one compiled without limits."""


class TooLargeError(SecurityError):
    """An operation of a template would make a value that is too large."""


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """Compile `a ~ b` to a call that is limited."""
        self.write("environment.concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")


def _concat(parts: Iterable[str]) -> str:
    """Join texts: what a template outputs, or a block or a macro of it."""
    found, size = [], 0
    for part in parts:
        size += len(part)
        _check_size(size)
        found.append(part)
    return "".join(found)


class _Filters(dict[str, Callable[..., Any]]):
    """Filters by name, with limits; transformers sets some of its own."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        for name, function in filters.items():
            self[name] = function

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        super().__setitem__(name, _limited(name, function) if name in _LIMITED_FILTERS else function)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The environment in which transformers compiles templates, with a limit on the size of each operation's result.

    Operators are intercepted, which also keeps them from being computed while a template is compiled; calls and filters
    are checked by their arguments.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    code_generator_class = _Code
    concat = staticmethod(_concat)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.globals["lipsum"]
        self.filters = _Filters(self.filters)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` if its result is small enough."""
        if operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            _check_format(left, right)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                _check_size(_size(value) * times if isinstance(times, int) else 0)
            _check_size(_bits(left) + _bits(right))
        elif operator == "**":
            _check_size(_bits(left) * right if isinstance(right, int) else 0)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's replacement of `str.format`, checked; None for any other value."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (args, kwargs))
            return wrapped(*args, **kwargs)

        return checked

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a macro, or a method of a value if its result is small enough."""
        receiver = getattr(function, "__self__", None)
        if isinstance(receiver, _PLAIN):
            if function.__name__ == "join" and args and not isinstance(args[0], Sized):
                args = (list(args[0]),)
            _check_numbers((*args, *kwargs.values()))
            _check_method(function.__name__, receiver, args, kwargs)
        return super().call(context, function, *args, **kwargs)


def limited(template: str) -> str:
    """A template that renders the same, and that transformers has compiled with limits.

    transformers offers no way to choose the environment, and caches what it has compiled by the template's text.

    Raises:
        TooLargeError: A value that it computes is too large.
        jinja2.TemplateError: It is malformed.
    """
    from transformers.utils import chat_template_utils

    marked = _MARK + template
    with _LOCK:
        before = chat_template_utils.ImmutableSandboxedEnvironment
        chat_template_utils.ImmutableSandboxedEnvironment = LimitedEnvironment
        try:
            chat_template_utils._compile_jinja_template(marked)
        finally:
            chat_template_utils.ImmutableSandboxedEnvironment = before
    return marked


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks its arguments first. What Jinja passes itself comes before the value."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        value, others = args[passed], args[passed + 1 :]
        if name == "join" and not isinstance(value, Sized):
            value = list(value)
            args = (*args[:passed], value, *others)
        if name in _FILTERS_WITH_WIDTHS:
            _check_numbers((*others, *kwargs.values()))
        if name == "join":
            between = others[0] if others else kwargs.get("d", "")
            _check_size(_total(value) + _size(between) * len(value))
        else:
            _check_method(name, value, others, kwargs)
        return function(*args, **kwargs)

    return checked


def _check_method(name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call of a method, or of the filter of its name."""
    if not isinstance(value, (str, bytes)):
        return
    if name in ("format", "format_map"):
        _check_format(value, (args, kwargs))
    elif name == "replace":
        old, new = (*args, *kwargs.values(), "", "")[:2]
        times = value.count(old) if isinstance(value, str) and isinstance(old, str) else len(value)
        _check_size(len(value) + times * _size(new))
    elif name == "join" and args:
        _check_size(_total(args[0]) + len(value) * _size(args[0]))
    elif name in ("expandtabs", "indent", "translate"):
        numbers = [each for each in (*args, *kwargs.values()) if isinstance(each, int)]
        _check_size(len(value) * max([8, *numbers]) if name != "translate" else 0)
        if name == "translate":
            _check_size(len(value) * max([1, *map(_size, _flat(args))]))


def _check_format(text: Any, values: Any) -> None:
    """Check the widths of a format string, and the numbers that it may take as widths."""
    pattern = text.decode("latin-1") if isinstance(text, bytes) else text
    if found := _WIDTH.search(pattern):
        raise TooLargeError(f"a width of {found[0][:12]}")
    if "*" in pattern or re.search(r"\{[^{}]*\{", pattern):
        _check_numbers(_flat(values))


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, dict):
        values = tuple(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    else:
        yield values


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int):
            _check_size(abs(value))


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise TooLargeError(f"it makes a value of more than {LARGEST:,} characters")


def _total(parts: Any) -> int:
    """The length of all texts together."""
    return len(parts) if isinstance(parts, (str, bytes)) else sum(map(_size, parts))


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0
