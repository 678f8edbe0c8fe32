"""Cutting long texts into pieces at natural boundaries."""

from __future__ import annotations

from collections.abc import Iterator

from curation.errors import RecipeError

MINIMUM_PIECE_BYTES = 64

# A mark, and how much of it stays with the piece before the cut; the strongest first: between top-level
# definitions or sections, paragraphs, lines, sentences, words.
_BOUNDARIES = (
    ("\n\n\n", 3),
    ("\nclass ", 1),
    ("\ndef ", 1),
    ("\n# ", 1),
    ("\n## ", 1),
    ("\n\n", 2),
    ("\n", 1),
    (". ", 2),
    (" ", 1),
)


def cut(text: str, piece_bytes: int) -> Iterator[str]:
    """Cut `text` into consecutive pieces of at most `piece_bytes` UTF-8 bytes; together they are the text.

    A cut is made at the strongest boundary in the second half of the room, and the last two pieces share
    what is left evenly, so that no piece but the last is shorter than half of `piece_bytes`, save for that
    pair, and no piece is a mere rest. Without any boundary the cut is between two characters.

    >>> list(cut("One. Two. " * 8, 64))
    ['One. Two. One. Two. One. Two. One. Two. One. ', 'Two. One. Two. One. Two. One. Two. ']
    """
    if piece_bytes < MINIMUM_PIECE_BYTES:
        raise RecipeError(
            f"`piece_bytes` is {piece_bytes}, which is too small to hold a text",
            remedy=f"Choose at least {MINIMUM_PIECE_BYTES} bytes",
        )
    start = 0
    left = len(text.encode())
    while left > piece_bytes:
        # Half of the rest, and a little more, so that a cut at or before it leaves no third piece.
        room = piece_bytes if left > 1.5 * piece_bytes else left // 2 + piece_bytes // 8
        stop = _boundary(text, start, _reach(text, start, room))
        piece = text[start:stop]
        yield piece
        start = stop
        left -= len(piece.encode())
    if left or not start:
        yield text[start:]


def _reach(text: str, start: int, room: int) -> int:
    """The furthest end of a slice from `start` that fits into `room` bytes."""
    window = text[start : start + room]
    if window.isascii():
        return start + len(window)
    return start + len(window.encode()[:room].decode("utf-8", "ignore"))


def _boundary(text: str, start: int, stop: int) -> int:
    """The best place to cut in the second half of `start:stop`; `stop` itself if there is none."""
    middle = start + (stop - start + 1) // 2
    for mark, kept in _BOUNDARIES:
        at = text.rfind(mark, middle, stop)
        if at >= 0:
            return at + kept
    return stop
