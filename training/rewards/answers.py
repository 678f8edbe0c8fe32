"""Finding the final answer in a model's text. The text is untrusted: every search is linear in its length."""

from __future__ import annotations

import re

LONGEST_TEXT = 40_000  # characters from the end; an answer stands at the end
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?|[-+]?\.\d+")
_SAYS = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|;")


def answer_part(text: str, opening: str = "<think>", closing: str = "</think>") -> str:
    """What stands after the thought: after the last `closing`; nothing if a thought was opened and never
    closed.

    >>> [answer_part(t) for t in ("<think>2, or 3?</think>It is 3.", "<think>2, or 3?", "It is 3.")]
    ['It is 3.', '', 'It is 3.']
    """
    _, found, after = text.rpartition(closing)
    if found:
        return after
    return "" if opening in text else text


def extract_answer(text: str, *, last_number: bool = True) -> str | None:
    """The final answer that a text states, or None: the last of the first of these forms that it has.

    \\boxed{...}, a line "#### ...", "the answer is ...", and (with `last_number`) the last number.

    >>> extract_answer(r"First 2, so \\boxed{\\frac{1}{2}}."), extract_answer("so on\\n#### 1,234")
    ('\\\\frac{1}{2}', '1,234')
    >>> [extract_answer(t) for t in ("The answer is 7 apples.", "Hence 3, then 4", "No idea")]
    ['7 apples', '4', None]
    """
    text = text[-LONGEST_TEXT:]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip() or None
    marked = text.rfind("####")
    if marked >= 0:
        return text[marked + 4 :].strip().split("\n", 1)[0].strip() or None
    said = list(_SAYS.finditer(text))
    if said:
        rest = text[said[-1].end() :]
        end = _SENTENCE_END.search(rest)
        stated = (rest[: end.start()] if end else rest).strip()
        if stated:
            return stated
    if not last_number:
        return None
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else None


def last_boxed(text: str) -> str | None:
    """The content of the last complete \\boxed{...} with balanced braces, or None."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for at in range(start + 6, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start + 7 : at]
        # unclosed; an earlier one can only be closed inside this one's text, so one more look is enough
        start = text.rfind("\\boxed{", 0, start) if depth == 1 else -1
    return None
