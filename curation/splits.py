"""Which documents train and which are held out: by the hash of where they come from, never by chance."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from curation.documents import Document
from curation.errors import RecipeError


def split_of(document: Document, seed: int, shares: Mapping[str, float]) -> str:
    """The split of a document, such as `train` or `test`.

    shares : share of the origins per split, such as `{"train": 0.9, "test": 0.1}`; they sum to 1

    A pure function of the origin (`Document.origin`: the file that the text was cut from, else its url, else
    its id), so the pieces of one file never straddle two splits, not even when two sources read the same
    file, and adding documents moves none that was there. The share of *bytes* in a split varies around the
    share of origins. Raises RecipeError when the shares are negative or do not sum to 1.
    """
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise RecipeError(
            f"The shares of the splits must be positive and sum to 1, but are {dict(shares)}",
            remedy="Change them so that they sum to 1",
        )
    digest = hashlib.sha256(f"split\0{seed}\0{document.origin}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    names = sorted(name for name in shares if shares[name])  # by name: the order in a recipe is irrelevant
    for name in names:
        point -= shares[name]
        if point < 0:
            return name
    return names[-1]
