"""How a golden's `expect` is compared with what a tool answered: a part of an object, the whole of anything else."""

from __future__ import annotations

from typing import Any


def matches(expect: Any, actual: Any) -> bool:
    """Whether *actual* holds all that *expect* says.

    An object may have more members than expected; an array must have as many items; true is not 1.
    """
    if isinstance(expect, dict):
        return isinstance(actual, dict) and all(
            key in actual and matches(value, actual[key]) for key, value in expect.items()
        )
    if isinstance(expect, list | tuple):
        return (
            isinstance(actual, list | tuple)
            and len(expect) == len(actual)
            and all(matches(one, two) for one, two in zip(expect, actual, strict=True))
        )
    if isinstance(expect, bool) or isinstance(actual, bool):
        return expect is actual
    return bool(expect == actual)
