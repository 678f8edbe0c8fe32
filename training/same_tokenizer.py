"""Whether two tokenizers are the same where it matters to a teacher: every text gives the same token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.errors import DataError
from training.tokens import hash_tokenizer, text_encoder

# Spaces, case, digits, accents, scripts without spaces, an emoji of several code points, code, line ends.
PROBE = (
    "The quick brown fox, aged 12,345.678 years, doesn't jump over 3 lazy dogs!",
    "  def f(x):\n\treturn x**2  # naïve\r\n\r\n\n    if x != 0 and y <= -1e-5:",
    "Straße, ÉCOLE, Łódź, cafe\u0301; 日本語の文章、中文字符。 Привет, мир! שלום مرحبا",
    "\\frac{1}{2} \\int_0^\\infty e^{-x^2} dx = \\sqrt{\\pi}/2 👩‍👩‍👧 …   ",
)


def check_same_tokenizer(student: Any, teacher: Any, where: str) -> None:
    """Raise DataError, naming the first difference, unless both give the same ids to every token and text.

    Compared are the vocabularies, the tokens that were added to them, and the ids of a probe text. What is
    written around a text (bos, eos, chat templates) may differ: the student's token stream has its own.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        token = min(
            (t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)),
            key=lambda t: (min(ours.get(t, 1 << 40), theirs.get(t, 1 << 40)), t),
        )
        raise _differs(
            f"the token {token!r} is {_number(ours.get(token))} in the student's, {_number(theirs.get(token))} "
            f"in the teacher's ({len(ours):,} and {len(theirs):,} tokens)",
            where,
        )
    if student.get_added_vocab() != teacher.get_added_vocab():
        names = sorted(student.get_added_vocab().keys() ^ teacher.get_added_vocab().keys())
        raise _differs(f"the token {names[0]!r} is an added one in only one of them", where)
    for text, one, other in zip(
        PROBE, text_encoder(student)(PROBE), text_encoder(teacher)(PROBE), strict=True
    ):
        if one != other:
            raise _differs(f"they cut the text {text[:24]!r}... differently", where)


def check_teachers_tokenizer(teacher: Path, wanted: str, student: Path | str | None) -> None:
    """Raise DataError unless the tokenizer of the folder `teacher` is the one the data was made with.

    wanted  : `hash_tokenizer` of the data's tokenizer; when the teacher's has the same, they are the same
    student : folder of the data's tokenizer, with which the teacher's is compared when the hashes differ
    """
    from training.tokenizer import load_tokenizer  # here, because it imports transformers

    taught = load_tokenizer(teacher)
    if hash_tokenizer(taught) == wanted:
        return
    if student is None:
        raise DataError(
            "The teacher's tokenizer is not, to the byte, the one the data was tokenized with",
            where=str(teacher),
            remedy="Choose a teacher with that tokenizer; if only details such as the chat template differ, "
            "give the folder of the data's tokenizer (tokenizer), and their tokens are compared",
        )
    own = load_tokenizer(student)
    if hash_tokenizer(own) != wanted:
        raise DataError(
            "This is not the tokenizer that the data was tokenized with",
            where=str(student),
            remedy="Give the folder of the tokenizer that made the token files",
        )
    check_same_tokenizer(own, taught, str(teacher))


def _number(at: int | None) -> str:
    return "missing" if at is None else f"number {at}"


def _differs(why: str, where: str) -> DataError:
    return DataError(
        f"The teacher's tokenizer is not the student's: {why}",
        where=where,
        remedy="Choose a teacher with the student's tokenizer, or tokenize the data with the teacher's",
    )
