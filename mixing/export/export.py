"""One function over the formats: `export_mixture(mixture, format, plan)`; `mixwright export`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curation.atomic import write_text
from curation.errors import RecipeError
from mixing.export import configurations, programs
from mixing.export.plan import ExportPlan, Share, document_probabilities, shares
from mixing.mixture import Mixture

Writer = Callable[[list[Share], Mixture, ExportPlan], tuple[dict[str, str], tuple[str, ...]]]

_WRITERS: dict[str, tuple[Writer, str]] = {
    "nanotron": (configurations.nanotron, "sequences"),
    "olmo-core": (configurations.olmo_core, "tokens"),
    "megatron": (configurations.megatron, "sequences"),
    "torchtitan": (programs.torchtitan, "sequences"),
    "litdata": (programs.litdata, "sequences"),
    "datasets": (programs.datasets, "documents"),
    "olmix": (configurations.olmix, "tokens"),
}
FORMATS = tuple(_WRITERS)


@dataclass(frozen=True)
class Exported:
    """The files of an export and what they mean.

    files  : text by file name
    unit   : what the weights in the files count: tokens, sequences (of one length) or documents
    shares : by source, the share in that unit
    tokens : by source, tokens of the budget in whole sequences; None when there is no budget
    epochs : by source, times it will be read; None where its size is not known
    notes  : sentences that belong beside the files
    """

    format: str
    files: dict[str, str]
    unit: str
    shares: dict[str, float]
    tokens: dict[str, int] | None
    epochs: dict[str, float | None]
    notes: tuple[str, ...]


def export_mixture(mixture: Mixture, format: str, plan: ExportPlan | None = None) -> Exported:
    """Write a mixture in another trainer's terms.

    format : one of FORMATS
    Raises RecipeError on an unknown format, names that the mixture does not have, and facts that the format
    needs and nobody gave.
    """
    if format not in _WRITERS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        raise RecipeError(
            f"There is no export format {format!r}",
            where="format",
            remedy=f"Did you mean {near[0]!r}?" if near else f"Formats: {', '.join(FORMATS)}",
        )
    plan = plan or ExportPlan()
    rows, notes = shares(mixture, plan)
    writer, unit = _WRITERS[format]
    files, more = writer(rows, mixture, plan)
    in_unit = (
        document_probabilities(rows, plan)
        if unit == "documents"
        else {row.source: row.weight for row in rows}
    )
    if format == "olmix":
        # Its table holds weights only, so nothing is missing without paths.
        notes = ()
    return Exported(
        format=format,
        files=files,
        unit=unit,
        shares=in_unit,
        tokens=None if rows[0].tokens is None else {row.source: row.tokens or 0 for row in rows},
        epochs={row.source: row.epochs for row in rows},
        notes=(*notes, *more, *mixture.notes),
    )


def write_export(exported: Exported, folder: Path | str) -> list[Path]:
    """Write the files into a folder, each atomically; returns their paths."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in exported.files.items():
        write_text(target / name, text)
        written.append(target / name)
    return written
