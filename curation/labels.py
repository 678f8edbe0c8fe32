"""Labels that a recipe states: rules which say what counts as good and as bad, and why.

Where no published classifier or judge can be loaded (no network, no GPU), a run trains small ones of its own
from such labels (see raters). A rule gives a label to the documents of some sources, or to those in which a
pattern is found often enough; a document takes the label of the first rule that matches. A rule with
`corrupt` makes damaged copies instead, so that the raters also learn what broken text looks like.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from curation.documents import Document
from curation.errors import RecipeError

Corruption = Literal["shuffle_words", "shuffle_lines", "repeat_lines", "strip_letters"]
CORRUPTIONS = ("shuffle_words", "shuffle_lines", "repeat_lines", "strip_letters")

PATTERN_SECONDS = 2.0
PATTERN_CHARACTERS = 2000
# Raters see the head of a text only; this is well beyond it.
EXAMPLE_CHARACTERS = 8000


@dataclass(frozen=True)
class LabelRule:
    """One rule of a list.

    name    : how the report names it
    label   : 0 to 5 for the educational score (5 is best); 0 or 1 for a judge (1 is "include")
    why     : the reason, for the reader of the report
    sources : only documents of these; None for all
    pattern : regular expression that must be found `minimum_matches` times in the first 8,000 characters
    corrupt : make a damaged copy of each matching document, and give the label to the copy
    share   : take only this share of the matching documents, chosen by the hash of their id
    """

    name: str
    label: float
    why: str
    sources: tuple[str, ...] | None = None
    pattern: str | None = None
    minimum_matches: int = 1
    corrupt: Corruption | None = None
    share: float = 1.0


@dataclass(frozen=True)
class LabelledExample:
    """A text with its label; `group` is its origin, so that pieces of one file stay on one side of a
    split.
    """

    id: str
    text: str
    label: float
    rule: str
    source: str
    group: str


def check_rules(rules: Sequence[LabelRule], *, task: str, highest: float) -> None:
    """Raise RecipeError for labels outside 0..highest, unknown corruptions, bad patterns and repeated
    names.
    """
    for rule in rules:
        where = f"labels.{task}.{rule.name}"
        if not 0 <= rule.label <= highest:
            raise RecipeError(f"The label {rule.label:g} is not between 0 and {highest:g}", where=where)
        if rule.corrupt is not None and rule.corrupt not in CORRUPTIONS:
            raise RecipeError(
                f"`{rule.corrupt}` is not a corruption",
                where=where,
                remedy=f"Use one of: {', '.join(CORRUPTIONS)}",
            )
        if not 0 < rule.share <= 1 or rule.minimum_matches < 1:
            raise RecipeError("`share` is above 0 and at most 1, `minimum_matches` at least 1", where=where)
        _compile(rule, where)
    repeated = [name for name, count in Counter(rule.name for rule in rules).items() if count > 1]
    if repeated:
        raise RecipeError(f"Two rules have the name `{repeated[0]}`", where=f"labels.{task}")
    if len({rule.label for rule in rules}) < 2:
        raise RecipeError(
            "The rules give one label only, and nothing can be learnt from that",
            where=f"labels.{task}",
            remedy="State rules for good and for bad documents",
        )


def label_documents(
    documents: Iterable[Document], rules: Sequence[LabelRule], *, task: str, seed: int, highest: float = 1.0
) -> list[LabelledExample]:
    """Labelled examples in the order of `documents`; documents that no rule matches have none.

    Raises RecipeError for unusable rules, for a rule that takes more than 2 s on one document (patterns that
    backtrack without end), and when fewer than two labels occur.
    """
    check_rules(rules, task=task, highest=highest)
    compiled = [(rule, _compile(rule, f"labels.{task}.{rule.name}")) for rule in rules]
    examples: list[LabelledExample] = []
    for document in documents:
        labelled = False
        for rule, pattern in compiled:
            if rule.corrupt is None and labelled:
                continue
            if not _matches(document, rule, pattern, task, seed):
                continue
            text = document.text[:EXAMPLE_CHARACTERS]
            if rule.corrupt is None:
                labelled = True
            else:
                text = corrupted(text, rule.corrupt, f"{seed}\0{rule.name}\0{document.id}")
            examples.append(
                LabelledExample(document.id, text, rule.label, rule.name, document.source, document.origin)
            )
    if len({example.label for example in examples}) < 2:
        raise RecipeError(
            "The rules give fewer than two different labels to these documents",
            where=f"labels.{task}",
            remedy="Check their `sources` and `pattern`: do they match anything?",
        )
    return examples


def label_counts(examples: Sequence[LabelledExample], rules: Sequence[LabelRule]) -> list[dict[str, Any]]:
    """How many examples each rule made, also the rules that made none: for the report."""
    counts = Counter(example.rule for example in examples)
    return [
        {"rule": rule.name, "label": rule.label, "why": rule.why, "examples": counts[rule.name]}
        for rule in rules
    ]


def balanced(examples: Sequence[LabelledExample], limit: int, *, seed: int) -> list[LabelledExample]:
    """At most `limit` examples, shared evenly among labels, then among the rules of a label; order kept.

    What a small label leaves over goes to the others. Examples are chosen by the hash of (seed, rule, id), so
    the
    choice does not depend on their order.
    """
    labels: dict[float, dict[str, list[LabelledExample]]] = {}
    for example in examples:
        labels.setdefault(example.label, {}).setdefault(example.rule, []).append(example)
    sizes = {str(label): sum(map(len, rules.values())) for label, rules in labels.items()}
    per_label = even_shares(sizes, limit)
    chosen: set[tuple[str, str]] = set()
    for label, rules in labels.items():
        per_rule = even_shares({name: len(members) for name, members in rules.items()}, per_label[str(label)])
        for name, members in rules.items():
            ranked = sorted(members, key=lambda e: _digest(f"{seed}\0{e.rule}\0{e.id}"))
            chosen.update((e.rule, e.id) for e in ranked[: per_rule[name]])
    return [example for example in examples if (example.rule, example.id) in chosen]


def even_shares(sizes: dict[str, int], limit: int) -> dict[str, int]:
    """Share `limit` places evenly; nobody gets more than its size.

    >>> even_shares({"a": 10, "b": 2, "c": 10}, 12)
    {'b': 2, 'a': 5, 'c': 5}
    """
    shares: dict[str, int] = {}
    for done, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
        shares[name] = min(sizes[name], limit // (len(sizes) - done))
        limit -= shares[name]
    return shares


def corrupted(text: str, how: Corruption, key: str) -> str:
    """A damaged copy of `text`; equal (text, how, key) give equal copies.

    shuffle_words : all words in random order, the white space between them kept
    shuffle_lines : the lines in random order
    repeat_lines  : three of its lines over and over, to the length of the original
    strip_letters : every letter removed; digits, marks and white space stay
    """
    chance = random.Random(_digest(key))
    if how == "strip_letters":
        return "".join(character for character in text if not character.isalpha())
    if how == "shuffle_words":
        words = regex.findall(r"\S+", text)  # str.split knows other white space than \S does
        chance.shuffle(words)
        fresh = iter(words)
        return regex.sub(r"\S+", lambda _: next(fresh), text)
    lines = text.splitlines(keepends=True)
    if how == "shuffle_lines":
        chance.shuffle(lines)
        return "".join(lines)
    filled = [line for line in lines if line.strip()] or [text]
    chosen = chance.sample(filled, min(3, len(filled)))
    out: list[str] = []
    length = 0
    while length < max(len(text), 1):
        out.append(chance.choice(chosen).rstrip("\n") + "\n")
        length += len(out[-1])
    return "".join(out)


def _compile(rule: LabelRule, where: str) -> regex.Pattern[str] | None:
    if rule.pattern is None:
        return None
    if len(rule.pattern) > PATTERN_CHARACTERS:
        raise RecipeError(f"The pattern is longer than {PATTERN_CHARACTERS} characters", where=where)
    try:
        return regex.compile(rule.pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise RecipeError(f"`{rule.pattern}` is not a regular expression: {error}", where=where) from error


def _matches(
    document: Document, rule: LabelRule, pattern: regex.Pattern[str] | None, task: str, seed: int
) -> bool:
    if rule.sources is not None and document.source not in rule.sources:
        return False
    if rule.share < 1 and _digest(f"{seed}\0share\0{rule.name}\0{document.id}") >= rule.share * 2**64:
        return False
    if pattern is None:
        return True
    found = 0
    try:
        for _ in pattern.finditer(document.text[:EXAMPLE_CHARACTERS], timeout=PATTERN_SECONDS):
            found += 1
            if found >= rule.minimum_matches:
                return True
    except TimeoutError as error:
        raise RecipeError(
            f"The pattern takes more than {PATTERN_SECONDS:g} s on the document {document.id}",
            where=f"labels.{task}.{rule.name}",
            remedy="Write it without nested repetition such as `(a+)+`",
        ) from error
    return False


def _digest(key: str) -> int:
    """64 bits of sha256: the same on every machine, unlike Python's hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
