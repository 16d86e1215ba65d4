"""Values that came in as JSON but cannot be written as canonical JSON: kept as text rather than lost."""

from __future__ import annotations

from omni_mcp.contracts.json import JsonValue

_BITS = 64


def storable(value: JsonValue) -> JsonValue:
    """Return *value* with integers beyond 64 bits as decimal text and lone surrogates spelt out.

    Raises:
        TypeError: it holds something that no JSON is.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bool) or value is None or isinstance(value, float):
        return value
    if isinstance(value, int):
        return value if -(2 ** (_BITS - 1)) <= value < 2**_BITS else str(value)
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(str(name)): storable(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} is no JSON")
