"""What passed every cut by score: duplicates across corpora out, then the best N of each source, written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing
from curation.cascade_cuts import Cuts
from curation.cascade_settings import CascadeSettings, Embed, Scorers
from curation.deduplicate import Duplicate, deduplicate
from curation.documents import Document
from curation.scoring.corpora import ScoredCorpora
from curation.top_up import KeptVectors, top_up

REPRESENTATIVE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("educational_score", pa.float32()),
        pa.field("reasoning_margin", pa.float32()),
        pa.field("reasoning_p", pa.float32()),
        pa.field("domain_margin", pa.float32()),
        pa.field("domain_p", pa.float32()),
    ]
)
EMBED_DOCUMENTS = 8192


def deduplicated_survivors(
    scoring: ScoredCorpora,
    cuts: Mapping[str, Cuts],
    scorers: Scorers,
    settings: CascadeSettings,
    warnings: list[str],
) -> tuple[list[Duplicate], KeptVectors]:
    """Duplicates among the survivors of all sources; only their texts are read, one source's at a time."""
    chosen: list[Document] = []
    scores: dict[str, float] = {}
    blocks, everything = [], []
    for source in scoring.corpora:
        table = cuts[source]["domain"].sort("id")
        scores |= dict(zip(table["id"].to_list(), table["domain_margin"].to_list(), strict=True))
        texts = scoring.texts(source, table["id"].to_list())
        chosen += [Document(name, "", source) for name in table["id"].to_list()]
        if scorers.embed_near is not None:
            everything += texts
            continue
        for first in range(0, len(texts), EMBED_DOCUMENTS):
            blocks.append(scorers.embed(texts[first : first + EMBED_DOCUMENTS]))
    if not chosen:
        return [], KeptVectors(np.zeros((0, 0), dtype=np.float32), settings.threshold)
    if scorers.embed_near is None:
        vectors = np.concatenate(blocks)
    else:
        vectors, recheck = scorers.embed_near(everything, settings.threshold)
        warnings += [] if recheck is None else [recheck.sentence()]
    priority = {source: place for place, source in enumerate(scoring.corpora)}
    _, duplicates = deduplicate(
        chosen,
        vectors,
        settings.threshold,
        rule=settings.rule,
        priority=priority,
        scores=scores,
        probes=settings.probes,
        notes=warnings,
    )
    dropped = {duplicate.dropped for duplicate in duplicates}
    kept = vectors[[document.id not in dropped for document in chosen]]
    return duplicates, KeptVectors(kept, settings.threshold)


def choose(
    cuts: Cuts,
    texts: Callable[[Sequence[str]], list[str]],
    duplicates: Sequence[Duplicate],
    embed: Embed,
    kept: KeptVectors,
    settings: CascadeSettings,
) -> None:
    """Add the cuts `deduplicated`, `representative` and `added` (in place of duplicates) of one source."""
    dropped = pl.DataFrame({"id": [d.dropped for d in duplicates]}, schema={"id": pl.String})
    unique = cuts["domain"].join(dropped, on="id", how="anti", maintain_order="left")
    final = unique.head(settings.documents)
    missing = min(settings.documents, cuts["domain"].height) - final.height
    cuts |= {"deduplicated": unique, "representative": final, "added": final.clear()}
    if settings.top_up and missing:
        fell = cuts["judged"].join(cuts["domain"], on="id", how="anti", maintain_order="left")
        cuts["added"] = top_up(fell, missing, texts, embed, kept)


def write_representative(path: Path, table: pl.DataFrame, scoring: ScoredCorpora, source: str) -> None:
    joined = table.join(scoring.rows(source, table), on="id", how="left", maintain_order="left")
    joined = joined.with_columns(pl.lit(source).alias("source"))
    missing = [name for name in REPRESENTATIVE_SCHEMA.names if name not in joined.columns]
    joined = joined.with_columns(pl.lit(None).alias(name) for name in missing)
    arrow = joined.select(REPRESENTATIVE_SCHEMA.names).to_arrow().cast(REPRESENTATIVE_SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(arrow.combine_chunks(), temporary, compression="zstd")
