"""Values and messages between a candidate program and its judge: exact built-in types only, of bounded size.

Nothing is pickled. A value is None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset or dict
of such values, of exactly these types: an object of a class of its own, such as one that is equal to
everything, cannot cross. Standard library only: the zygote imports this in a bare interpreter.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 60
MAX_INT_BITS = 1 << 16


class Unsendable(ValueError):
    """A value that may not cross, or a message that is not one."""


def encode(value: Any, depth: int = 0) -> Any:
    """`value` as JSON data with its type; Unsendable for any other type, or for what is too deep or too large.

    >>> encode((1, "a"))
    ['t', [['i', '0x1'], 'a']]
    >>> decode(encode({"a": {2.5, None}})) == {"a": {2.5, None}}
    True
    """
    if depth > MAX_DEPTH:
        raise Unsendable("the value is nested too deeply")
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        if value.bit_length() > MAX_INT_BITS:
            raise Unsendable("the number is too long")
        return ["i", hex(value)]
    if kind is float:
        return ["f", value.hex()]
    if kind is complex:
        return ["c", value.real.hex(), value.imag.hex()]
    if kind is bytes:
        return ["b", value.hex()]
    if kind in _SEQUENCES:
        return [_SEQUENCES[kind], [encode(item, depth + 1) for item in value]]
    if kind is dict:
        return ["d", [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]]
    raise Unsendable(f"a value of type {kind.__name__} cannot be compared; return built-in types")


def decode(data: Any, depth: int = 0) -> Any:
    """The value that `encode` made `data` of; Unsendable for anything else."""
    if depth > MAX_DEPTH:
        raise Unsendable("the value is nested too deeply")
    if data is None or type(data) is bool or type(data) is str:
        return data
    try:
        tag, *rest = data
        if tag in _BUILDERS and isinstance(rest[0], list):
            return _BUILDERS[tag]([decode(item, depth + 1) for item in rest[0]])
        if tag == "d":
            return {decode(k, depth + 1): decode(v, depth + 1) for k, v in rest[0]}
        return _ATOMS[tag](*rest)
    except Unsendable:
        raise
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise Unsendable("the value is malformed") from error


_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}
_BUILDERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}
_ATOMS: dict[str, Any] = {
    "i": lambda digits: int(digits, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": bytes.fromhex,
}


def send(write: Callable[[bytes], int], message: Any) -> None:
    """Write one JSON message: four bytes of length, then UTF-8. `write` may take a part, as os.write does."""
    body = json.dumps(message).encode()
    left = struct.pack("!I", len(body)) + body
    while left:
        left = left[write(left) :]


def receive(read: Callable[[int], bytes], limit: int) -> Any:
    """The next message; None at the end of the stream. Unsendable for more than `limit` bytes or broken JSON."""
    head = _exactly(read, 4)
    if head is None:
        return None
    (length,) = struct.unpack("!I", head)
    if length > limit:
        raise Unsendable("the answer is too long")
    body = _exactly(read, length)
    if body is None:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unsendable("the answer is not a message") from error


def _exactly(read: Callable[[int], bytes], count: int) -> bytes | None:
    parts = []
    while count:
        part = read(min(count, 1 << 16))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
