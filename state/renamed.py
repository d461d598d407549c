"""Parameters that were renamed: the old keyword raises an error that names the new one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from anabranch.state.errors import DeclarationError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_ATTRIBUTE = "__renamed_parameters__"


def renamed(**names: str) -> Callable[[Decorated], Decorated]:
    """Decorate a class or function so that an old keyword gives one sentence with the new one.

    A class that is decorated also refuses the old keywords of its decorated bases. Positional
    arguments and new keywords pass unchanged, and so does the signature.

    Args:
        names: new names by old name.

    Raises:
        DeclarationError: by a call with an old keyword.

    >>> @renamed(hold="min_duration")
    ... def ramp(min_duration="0s"):
    ...     return min_duration
    >>> ramp(min_duration="1h")
    '1h'
    >>> ramp(hold="1h")
    Traceback (most recent call last):
    anabranch.state.errors.DeclarationError: ramp(hold=) is now called min_duration=
    """

    def decorate(decorated: Decorated) -> Decorated:
        merged = {**renamed_parameters(decorated), **names}
        if isinstance(decorated, type):
            decorated.__init__ = _checked(decorated.__init__, decorated.__name__, merged)  # type: ignore[misc]
            setattr(decorated, _ATTRIBUTE, merged)
            return decorated
        function: Decorated = _checked(decorated, decorated.__name__, merged)
        setattr(function, _ATTRIBUTE, merged)
        return function

    return decorate


def renamed_parameters(decorated: object) -> Mapping[str, str]:
    """New names by old name of a class or function, those of a class's bases included."""
    names: Mapping[str, str] = getattr(decorated, _ATTRIBUTE, {})
    return names


def _checked(function: Any, name: str, names: Mapping[str, str]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for given in kwargs:
            if given in names:
                raise DeclarationError(f"{name}({given}=) is now called {names[given]}=")
        return function(*args, **kwargs)

    return call
