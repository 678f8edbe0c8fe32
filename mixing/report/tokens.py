"""The section on tokens: which of them make a document help a capability, and which make it hurt.

Texts are untrusted: what cannot be seen is made visible here, markup is escaped by the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixing.report.elements import (
    Block,
    Coloured,
    ColouredPair,
    Disclosure,
    Palette,
    Piece,
    Prose,
    Section,
    heat,
    visible,
)
from mixing.report.numbers import decimals_for, listed, power_of_ten, scale_exponent, signed, words
from mixing.report.parsing import needed, number
from mixing.report.records import RunFacts

MOST_DOCUMENTS = 8
MOST_PIECES = 400
MOST_CHARACTERS = 4000
STRONGEST = 3


@dataclass(frozen=True)
class TokenDocument:
    """A document for one capability: pieces of text with their benefits, which with `rest` sum to `benefit`."""

    document: str
    source: str
    benefit: float
    pieces: tuple[tuple[str, float], ...]
    rest: float
    unscored: int = 0


@dataclass(frozen=True)
class TokenBenefits:
    """tokens.json."""

    reference: str
    checkpoints: Mapping[str, int]
    documents: Mapping[str, tuple[TokenDocument, ...]]


def parse_tokens(value: Mapping[str, Any]) -> TokenBenefits:
    """KeyError, TypeError or ValueError where the file is something else."""
    checkpoints, documents = {}, {}
    for name, entry in value["capabilities"].items():
        checkpoints[str(name)] = int(needed(entry["checkpoint"]))
        documents[str(name)] = tuple(_document(row) for row in entry["documents"][:MOST_DOCUMENTS])
    return TokenBenefits(str(value.get("reference", "")), checkpoints, documents)


def _document(row: Mapping[str, Any]) -> TokenDocument:
    pieces = [(str(text), needed(v)) for text, v in row["pieces"]]
    shown, size = [], 0
    for text, value in pieces[:MOST_PIECES]:
        size += len(text)
        if size > MOST_CHARACTERS:
            break
        shown.append((text, value))
    rest = needed(row.get("rest", 0.0)) + sum(v for _, v in pieces[len(shown) :])
    return TokenDocument(
        str(row["document"]),
        str(row["source"]),
        needed(row["benefit"]),
        tuple(shown),
        rest,
        int(number(row.get("unscored")) or 0),
    )


def sections(facts: RunFacts, palette: Palette) -> list[Section]:
    """Coloured documents of either end, by capability."""
    title = "Token by token: what in a document helps"
    found = facts.token_benefits
    if found is None or not any(found.documents.values()):
        return [
            Section(
                "tokens",
                title,
                "Why",
                missing="No document was looked at token by token",
                command="mixwright stage recipe.yaml --name token_benefits",
            )
        ]
    blocks: list[Block] = [Prose(_lead(found), "lead")]
    names = [c for c in facts.capability_names if c in found.documents]
    names += [c for c in found.documents if c not in names]
    for at, name in enumerate(names):
        if found.documents[name]:
            blocks.append(_capability(name, found, palette, opened=at == 0))
    return [Section("tokens", title, "Why", tuple(blocks))]


def _lead(found: TokenBenefits) -> str:
    return (
        "The benefit of a document is a sum over its tokens: how much learning to predict each of them, "
        "where it stands, "
        "would lower the loss on the probe. Shown are documents of most and of least benefit at the last "
        "checkpoint of the "
        f"reference {found.reference}. Bold on blue helps; underlined on orange hurts; the stronger the "
        "colour, the more, on a "
        "scale of each document's own."
    )


def _capability(name: str, found: TokenBenefits, palette: Palette, *, opened: bool) -> Disclosure:
    documents = sorted(found.documents[name], key=lambda d: -d.benefit)
    exponent = scale_exponent([d.benefit for d in documents])
    factor = 10.0**-exponent
    decimals = decimals_for([factor * d.benefit for d in documents], 3, least=1)
    scale = "" if exponent == 0 else f" (× {power_of_ten(exponent)})"
    coloured = [_coloured(d, factor, decimals, palette) for d in documents]
    half = (len(coloured) + 1) // 2
    return Disclosure(
        f"{name}: the most and the least beneficial documents{scale}",
        (
            ColouredPair("Most beneficial", tuple(coloured[:half])),
            ColouredPair("Least beneficial", tuple(reversed(coloured[half:]))),
        ),
        open=opened,
    )


def _coloured(document: TokenDocument, factor: float, decimals: int, palette: Palette) -> Coloured:
    sizes = sorted(abs(v) for _, v in document.pieces)
    # One outlier must not make all others pale.
    largest = sizes[int(0.97 * (len(sizes) - 1))] if sizes else 0.0
    pieces: list[Piece] = []
    for text, value in document.pieces:
        tone = heat(max(-largest, min(largest, value)), largest)
        tone = "" if tone in ("p1", "n1") else tone
        clean = visible(text.replace("\r\n", "\n"))
        if pieces and not tone and not pieces[-1].tone:
            pieces[-1] = Piece(pieces[-1].text + clean, "")
        else:
            pieces.append(Piece(clean, tone, signed(factor * value, decimals + 1) if tone else ""))
    rest = f"; what is not shown adds {signed(factor * document.rest, decimals)}" if document.rest else ""
    if document.unscored:
        rest += f"; {words(document.unscored, 'token')} after these were not scored"
    return Coloured(
        signed(factor * document.benefit, decimals),
        document.document[:20],
        document.source,
        palette.of_source(document.source),
        tuple(pieces),
        _strongest(document.pieces) + rest,
        "good" if document.benefit > 0 else "bad",
    )


def _strongest(pieces: Sequence[tuple[str, float]]) -> str:
    """For people who do not see colours: the strongest pieces in words."""
    ranked = sorted((p for p in pieces if p[0].strip()), key=lambda p: p[1])
    hurt = list(dict.fromkeys(f"“{visible(t.strip())}”" for t, v in ranked if v < 0))[:STRONGEST]
    help_ = list(dict.fromkeys(f"“{visible(t.strip())}”" for t, v in ranked[::-1] if v > 0))[:STRONGEST]
    parts = []
    if help_:
        parts.append(f"helps most: {listed(help_)}")
    if hurt:
        parts.append(f"hurts most: {listed(hurt)}")
    return "; ".join(parts) or "no token helps or hurts"
