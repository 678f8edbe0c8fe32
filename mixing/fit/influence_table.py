"""Weights from a table of influence scores (MobileLLM-R1, Eqs. 5 and 6), without a model or torch.

    I(x) = sum_c o_c sum_t alpha_{c,t} b(x; theta_{c,t}),   alpha_{c,t} = step_t / sum step
    rho_g = sum_{x in g} I(x) s_x / N_g,                     w_g = max(rho_g, 0) / sum

b is the benefit (positive lowers the probe loss), s_x the scored tokens of x, N_g their sum over the scored
documents of source g. The paper adds the capabilities up (equal o_c give the same weights), and leaves open what
becomes of a negative rho. A density is a derivative: it says where to go, not how far. With a `current` mixture
and a `step` the weights are a bounded move instead,

    w_g ~ current_g exp(step z_g / 2),   z = rho in standard deviations under the current mixture, cut at +-2,

in which no weight changes by more than a factor exp(step) before normalisation. `mixing.influence` makes the
tables and has the same two maps for its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curation.errors import DataError, RecipeError
from mixing.fit.columns import read_columns
from mixing.fit.proposal import Proposal, weight_intervals

if TYPE_CHECKING:
    import polars

COLUMNS = ("source", "document", "tokens", "benefit")
RESAMPLES = 1000
Z_MOST = 2.0


@dataclass(frozen=True)
class InfluenceTable:
    """Joint benefits by capability: for each source, tokens [d] and benefits [d, c] of its documents."""

    sources: tuple[str, ...]
    capabilities: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]
    benefits: tuple[np.ndarray, ...]

    def densities(self, objective: np.ndarray) -> np.ndarray:
        """rho [m] for weights [c] of the capabilities."""
        return np.array(
            [float((b @ objective) @ s / s.sum()) for s, b in zip(self.tokens, self.benefits, strict=True)]
        )

    def drawn_densities(self, objective: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
        """rho [resamples, m] with each source's documents drawn with replacement."""
        columns = []
        for place, (s, b) in enumerate(zip(self.tokens, self.benefits, strict=True)):
            rng = np.random.default_rng(np.random.SeedSequence([seed, 0x1F1, place]))
            picked = rng.integers(0, len(s), size=(resamples, len(s)))
            total = np.maximum(s[picked].sum(axis=1), 1e-300)
            columns.append(((b @ objective) * s)[picked].sum(axis=1) / total)
        return np.column_stack(columns)


def read_influence(path: Path | str, reference: str | None = None) -> InfluenceTable:
    """Read `document, source, tokens, benefit` with optional `capability, checkpoint, reference`.

    reference : which reference model's rows count, where the table has several
    Raises DataError for gaps, double rows, and sources without scored tokens.
    """
    import polars as pl

    frame = read_columns(path, COLUMNS)
    references = sorted(frame["reference"].unique().to_list()) if "reference" in frame.columns else []
    if reference is None and len(references) > 1:
        raise RecipeError(
            f"The table holds the reference models {', '.join(references)}",
            where=str(path),
            remedy="Say which one counts (reference)",
        )
    if reference is not None:
        if reference not in references:
            raise RecipeError(
                f"The table has no reference {reference!r}",
                where=str(path),
                remedy=f"There are: {', '.join(references) or 'none'}",
            )
        frame = frame.filter(pl.col("reference") == reference)
    for name, value in (("capability", "all"), ("checkpoint", 1)):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(value).alias(name))
    numbers = frame.select(pl.col("tokens", "benefit", "checkpoint").cast(pl.Float64, strict=False))
    if not np.isfinite(numbers.to_numpy()).all() or float(numbers["tokens"].min() or 0) < 0:  # type: ignore[arg-type]
        raise DataError(
            "A benefit, checkpoint or number of tokens is missing, negative or not a number",
            where=str(path),
            remedy="Score the documents again, or remove their rows",
        )
    frame = frame.with_columns(numbers).with_columns(
        pl.col("source", "document", "capability").cast(pl.String)
    )
    return _assemble(frame.sort("source", "document", "capability", "checkpoint"), str(path))


def propose_influence(
    table: InfluenceTable,
    objective: np.ndarray,
    *,
    seed: int,
    current: np.ndarray | None = None,
    step: float | None = None,
) -> Proposal:
    """Eq. 6, or a bounded step from the `current` mixture [m]; intervals by a bootstrap over documents."""
    rho = table.densities(objective)
    drawn = table.drawn_densities(objective, seed=seed)
    if step is None:
        weights, resampled = positive_shares(rho), positive_shares(drawn)
    else:
        start = np.full(len(rho), 1 / len(rho)) if current is None else current
        weights, resampled = bounded_step(start, rho, step), bounded_step(start, drawn, step)
    notes = [
        "Intervals cover the choice of the scored documents, not the chance of training the scored models"
    ]
    negative = [source for source, value in zip(table.sources, rho, strict=True) if value < 0]
    if negative and step is None:
        notes.append(f"Negative benefit, so weight 0: {', '.join(negative)}")
    if step is None and np.all(rho <= 0):
        notes.append("No source has a positive benefit, so the weights are uniform")
    return Proposal(weights, weight_intervals(resampled, weights), tuple(notes))


def positive_shares(rho: np.ndarray) -> np.ndarray:
    """Eq. 6 for densities [..., m]: positive parts over their sum; uniform where none is positive.

    >>> positive_shares(np.array([3.0, 1.0, -2.0]))
    array([0.75, 0.25, 0.  ])
    """
    kept = np.maximum(rho, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1.0), 1 / rho.shape[-1])


def bounded_step(current: np.ndarray, rho: np.ndarray, step: float) -> np.ndarray:
    """The move of the module's docstring, for densities [..., m].

    >>> bounded_step(np.array([0.5, 0.5]), np.array([1.0, 0.0]), step=0.0)
    array([0.5, 0.5])
    """
    if not np.isfinite(step) or step < 0:
        raise RecipeError(
            f"A step of {step:g} is not possible", where="step", remedy="Give 0 or more, say .7"
        )
    mean = (rho @ current)[..., None]
    spread = np.sqrt((np.square(rho - mean) @ current)[..., None])
    z = np.clip((rho - mean) / np.where(spread > 0, spread, 1.0), -Z_MOST, Z_MOST)
    moved = current * np.exp(step * z / 2)
    return moved / moved.sum(axis=-1, keepdims=True)


def _assemble(frame: polars.DataFrame, where: str) -> InfluenceTable:
    capabilities = tuple(sorted(frame["capability"].unique().to_list()))
    sources, tokens, benefits = [], [], []
    steps = {
        c: sorted(part["checkpoint"].unique().to_list())
        for (c,), part in frame.partition_by("capability", as_dict=True).items()
    }
    for (source,), part in frame.partition_by("source", as_dict=True, maintain_order=True).items():
        documents = part["document"].unique(maintain_order=True).to_list()
        columns = []
        for capability in capabilities:
            mine = part.filter(part["capability"] == capability)
            if (
                len(mine) != len(documents) * len(steps[capability])
                or mine.select("document", "checkpoint").is_duplicated().any()
            ):
                raise DataError(
                    f"Not every document of source {source!r} has one benefit for {capability!r} at each checkpoint",
                    where=where,
                    remedy="Score the same documents, once, for every capability and checkpoint",
                )
            rising = np.array(steps[capability])
            alpha = rising / rising.sum() if rising.sum() > 0 else np.full(len(rising), 1 / len(rising))
            columns.append(mine["benefit"].to_numpy().reshape(len(documents), len(rising)) @ alpha)
        first = part.unique("document", keep="first", maintain_order=True)
        size = first["tokens"].to_numpy()
        if size.sum() <= 0:
            raise DataError(
                f"No token of source {source!r} was scored", where=where, remedy="Give longer documents"
            )
        sources.append(str(source))
        tokens.append(size)
        benefits.append(np.column_stack(columns))
    return InfluenceTable(tuple(sources), capabilities, tuple(tokens), tuple(benefits))
