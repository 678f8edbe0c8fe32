"""Values and messages between a candidate program and its judge: exact built-in types only, of bounded size.

Nothing is pickled. A value is None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset or dict
of such values, or one of these types itself, and arrives as exactly that: an object of a class of its own, such
as one that is equal to everything, cannot cross. Where tests build objects of the candidate's classes, these
stay in its process and a number crosses. Standard library only: the zygote imports this in a bare interpreter.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 60
MAX_INT_BITS = 1 << 16


class Unsendable(ValueError):
    """A value that may not cross, or a message that is not one."""


@dataclass(frozen=True)
class Held:
    """An object that stays in the candidate's process, by its number there."""

    number: int


def encode(value: Any, keep: Callable[[Any], int] | None = None, depth: int = 0) -> Any:
    """`value` as JSON data with its type; Unsendable for any other type, or for what is too deep or too large.

    A value of a derived class (Counter, a named tuple) crosses as the built-in value that it is underneath, so
    that no method of it counts. keep : a number for an object that is none of these, by which it is `Held`

    >>> encode((1, "a"))
    ['t', [['i', '0x1'], 'a']]
    >>> decode(encode({"a": {2.5, None}})) == {"a": {2.5, None}}
    True
    """
    if depth > MAX_DEPTH:
        raise Unsendable("the value is nested too deeply")
    if value is None or type(value) is bool:
        return value
    if type(value) is type and value in _TYPES.values():
        return ["y", value.__name__]
    kind: Any = type(value)
    if kind not in _KINDS:
        kind = next((base for base in _KINDS if issubclass(type(value), base)), None)
    if kind is None:
        if keep is None:
            raise Unsendable(
                f"a value of type {type(value).__name__} cannot be compared; return built-in types"
            )
        return ["o", keep(value)]
    if kind is str:
        return str.__str__(value)
    if kind is int:
        if int.bit_length(value) > MAX_INT_BITS:
            raise Unsendable("the number is too long")
        return ["i", hex(int.__int__(value))]
    if kind is float:
        return ["f", float.hex(value)]
    if kind is complex:
        return ["c", *(float.hex(part) for part in (value.real, value.imag))]
    if kind is bytes:
        return ["b", bytes.hex(value)]
    if kind is dict:
        return ["d", [[encode(k, keep, depth + 1), encode(v, keep, depth + 1)] for k, v in dict.items(value)]]
    return [_SEQUENCES[kind], [encode(item, keep, depth + 1) for item in kind.__iter__(value)]]


def decode(data: Any, held: Callable[[int], Any] | None = None, depth: int = 0) -> Any:
    """The value that `encode` made `data` of; Unsendable for anything else. held : gives a kept object."""
    if depth > MAX_DEPTH:
        raise Unsendable("the value is nested too deeply")
    if data is None or type(data) is bool or type(data) is str:
        return data
    try:
        tag, *rest = data
        if tag in _BUILDERS and isinstance(rest[0], list):
            return _BUILDERS[tag]([decode(item, held, depth + 1) for item in rest[0]])
        if tag == "d":
            return {decode(k, held, depth + 1): decode(v, held, depth + 1) for k, v in rest[0]}
        if tag == "o" and held is not None and type(rest[0]) is int and rest[0] >= 0:
            return held(rest[0])
        return _ATOMS[tag](*rest)
    except Unsendable:
        raise
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise Unsendable("the value is malformed") from error


def number_of(held: Any) -> int:
    """What `encode` is to keep of a `Held`; Unsendable for any other object."""
    if type(held) is not Held:
        raise Unsendable(f"a value of type {type(held).__name__} cannot be compared; return built-in types")
    return held.number


OPERATIONS = (".call", ".get", ".set")
"""What can be done with a `Held`, under names that no function can have: call it, read and set an attribute."""

_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}
_KINDS: tuple[Any, ...] = (str, int, float, list, tuple, dict, set, frozenset, bytes, complex)
_TYPES = {kind.__name__: kind for kind in (*_KINDS, bool)}
_BUILDERS: dict[str, Any] = {"l": list, "t": tuple, "s": set, "z": frozenset}
_ATOMS: dict[str, Any] = {
    "i": lambda digits: int(digits, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "b": bytes.fromhex,
    "y": _TYPES.__getitem__,
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
