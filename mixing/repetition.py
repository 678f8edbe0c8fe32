"""Repetition-matched sources: a proxy run reads so small a part of each source that it repeats it as often as the
target run would.

A mixture that reads a small source six times in the target run reads it less than once in a short proxy run,
where repetition costs nothing, and so looks better than it is. With every source cut to the share
(proxy tokens) / (target tokens), epochs are the same in both: w · D_target / n = w · D_proxy / (share · n).
(arXiv 2606.07597 finds the best mixture within 0.05 with a sixteenth of the tokens when repetition is matched,
and errs by 0.75 when it is not; Marin calls it simulated epoching.)
"""

from __future__ import annotations

import numpy as np

from curation.errors import DataError
from mixing.chosen_documents import choose_documents
from training.tokens import TokenSource

_SEED = 0x5EED


def part_of_source(source: TokenSource, share: float) -> TokenSource:
    """A random part of a source with `share` of its tokens, to the nearest whole document; the source itself at 1.

    The choice depends on the source's content alone: all runs of a study read the same part, and the part of a
    smaller share lies inside that of a larger. Documents keep their order. Raises DataError for a source so
    small that its share rounds to no document.
    """
    if share == 1:
        return source
    if not 0 < share < 1:
        raise ValueError(f"a share of {share}")
    lengths = np.diff(source.offsets)
    order = np.random.default_rng([_SEED, int(source.hash[:12], 16)]).permutation(len(lengths))
    reached = np.cumsum(lengths[order])
    wanted = share * source.total_tokens
    count = int(np.searchsorted(reached, wanted))
    # The document that crosses the line is taken if that brings the part nearer to its size.
    before = reached[count - 1] if count else 0
    if count < len(order) and reached[count] - wanted <= wanted - before:
        count += 1
    if count == 0:
        raise DataError(
            f"{share:.2g} of source {source.name!r} is {wanted:.0f} tokens, less than half a document",
            where=source.name,
            remedy="Train longer proxy runs, or do not match repetition",
        )
    return choose_documents(source, order[:count])
