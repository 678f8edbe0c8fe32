"""Hierarchical rejection sampling, MobileLLM-R1 section 5.1.1: corpora down to a representative set of each.

    read (-> exact and MinHash duplicates dropped before) (-> language) -> educational score
        -> Ask-LLM, reasoning -> Ask-LLM, domain -> deduplication across corpora -> N

Each cut looks at score tables only, which stay beside the corpora: with other thresholds nothing that was scored is
scored again. Texts are read by the scorers, a unit at a time, and again for the survivors alone; memory grows with
the number of documents, not with their text. Every document that was read has one verdict, in `verdicts.parquet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import replacing, write_json
from curation.classifiers.language import LanguageRule, LanguageScorer, none_passed, passing_language
from curation.clusters import PROBES
from curation.deduplicate import Duplicate, Rule, deduplicate, write_duplicates
from curation.documents import Document
from curation.educational import EducationalRule, few_passed
from curation.embedding_recheck import EmbeddingRecheck
from curation.funnel import audit, funnel_rows
from curation.judge_scores import judge_notes, judge_scores
from curation.recheck import decide
from curation.score_tables import score_files, top_share
from curation.scorer import Scorer
from curation.scoring.corpus import Corpus, check_ids, spill
from curation.scoring.execution import Execution, Runner
from curation.scoring.runners import open_runner
from curation.sizes import ByteCount
from curation.top_up import KeptVectors, top_up
from curation.verdicts import dropped_before, verdict_table

Embed = Callable[[Sequence[str]], np.ndarray]
Cuts = dict[str, pl.DataFrame]
EMBED_DOCUMENTS = 8192

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


@dataclass(frozen=True)
class CascadeSettings:
    """The cuts; the defaults are the paper's where it states them.

    educational  : rule for every source; `educational_of` has others for single sources
    language_of  : sources that are cut by language first, which needs `Scorers.language`
    reasoning_share, domain_share : parts of each source that the judge's two cuts keep
    threshold, rule, probes : semantic deduplication, see `semantic_duplicates`; unpublished
    documents    : size of each representative set
    top_up       : fill the places that duplicates left in a set with the next-ranked of the domain cut
    """

    educational: EducationalRule
    educational_of: Mapping[str, EducationalRule] = field(default_factory=dict)
    language_of: Mapping[str, LanguageRule] = field(default_factory=dict)
    reasoning_share: float = 0.1
    domain_share: float = 0.1
    threshold: float = 0.9
    rule: Rule = "greedy"
    probes: int = PROBES
    documents: int = 10_000
    top_up: bool = False


@dataclass(frozen=True)
class Scorers:
    """The models of the cascade: the classifier, and the judge with a prompt for each purpose.

    classifier : with a column `educational_score`: EducationalClassifier, or a classifier of one's own
    judges : by `reasoning`, the capabilities, and `combined` for sources with several capabilities or none
    embed  : texts to float32 [n, dim] with rows of length 1
    embed_near : texts and a threshold to embeddings, float32's wherever a cosine comes near the threshold, and what
        was measured (`embedding_recheck.embed_near`); in place of `embed` for the survivors, whose texts are then
        all in memory at once
    """

    classifier: Scorer
    judges: Mapping[str, Scorer]
    embed: Embed
    language: LanguageScorer | None = None
    embed_near: Callable[[Sequence[str], float], tuple[np.ndarray, EmbeddingRecheck | None]] | None = None


def domain_prompt(capabilities: Sequence[str]) -> str:
    """The domain prompt of a source: its capability's, or `combined` when it has several or none.

    >>> domain_prompt(["code"]), domain_prompt(["code", "mathematics"]), domain_prompt([])
    ('code', 'combined', 'combined')
    """
    return capabilities[0] if len(capabilities) == 1 else "combined"


def select_representative(
    documents: Mapping[str, Corpus | Sequence[Document]],
    capabilities: Mapping[str, Sequence[str]],
    scorers: Scorers,
    settings: CascadeSettings,
    *,
    scores: Path,
    out: Path,
    runner: Runner | None = None,
    already_dropped: pl.DataFrame | None = None,
    size: Scorer | None = None,
) -> list[str]:
    """Write the representative set of every source, and return warnings for the user.

    documents    : by source, in files or, when they are few, in memory; the order of the sources is their
        priority when documents duplicate each other
    capabilities : by source
    scores       : folder of the score tables, `<scores>/<source>/<scorer>.parquet`
    out          : gets `<source>.parquet`, `funnel.json`, `duplicates.parquet` and `verdicts.parquet`
    runner       : where scoring runs, see `scoring.runners.open_runner`; this process when None
    already_dropped : documents that are not to be scored, `dropped, kept_instead, kind, similarity` with kind
        `exact` or `minhash`; the funnel then has these two stages after `read`
    size         : scorer whose one column the funnel sums, `sizes.TokenCount`; by default UTF-8 bytes

    Top shares are exact, of the documents that reached the cut, with the id as tie-break. A source that ends with
    fewer than `documents` keeps all that passed, and a warning says so. Raises DataError when one id is in two
    sources, or when what was kept and dropped is not what was read.
    """
    if runner is None:
        with open_runner(Execution()) as here:
            return select_representative(
                documents, capabilities, scorers, settings, scores=scores, out=out, runner=here,
                already_dropped=already_dropped, size=size,
            )  # fmt: skip
    with _in_files(documents, scores) as corpora:
        scoring = _Scoring(corpora, scores, runner)
        check_ids(scoring.listings)
        sizes = {source: scoring.table(size or ByteCount(), source) for source in corpora}
        early = {s: dropped_before(table, already_dropped) for s, table in scoring.listings.items()}
        warnings: list[str] = []
        cuts = _judge(scoring, capabilities, scorers, settings, early, warnings)
        duplicates, kept = _deduplicate(scoring, cuts, scorers, settings, warnings)
        funnel, verdicts = [], []
        for source in corpora:
            _choose(cuts[source], partial(scoring.texts, source), duplicates, scorers.embed, kept, settings)
            verdicts.append(verdict_table(source, cuts[source], duplicates, early[source], settings))
            audit(source, cuts[source], verdicts[-1])
            funnel += funnel_rows(
                source,
                cuts[source],
                sizes[source],
                early=already_dropped is not None,
                language=bool(settings.language_of),
            )
            final = pl.concat([cuts[source]["representative"], cuts[source]["added"]])
            _write_representative(out / f"{source}.parquet", final, scoring, source)
            if final.height < settings.documents:
                warnings.append(
                    f"{source} has {final.height} representative documents, not {settings.documents}: read more "
                    "of it, or loosen the cuts"
                )
    with replacing(out / "verdicts.parquet") as temporary:
        pl.concat(verdicts).write_parquet(temporary, compression="zstd")
    write_duplicates(out / "duplicates.parquet", duplicates)
    write_json(out / "funnel.json", funnel)
    return warnings


@contextmanager
def _in_files(
    documents: Mapping[str, Corpus | Sequence[Document]], scores: Path
) -> Iterator[dict[str, Corpus]]:
    """Corpora; documents in memory are written to files for the time being."""
    written: list[Path] = []
    try:
        corpora = {}
        for source, found in documents.items():
            if not isinstance(found, Corpus):
                written.append(scores / source / ".documents.parquet")
                found = spill(found, source, written[-1])
            corpora[source] = found
        yield corpora
    finally:
        for file in written:
            file.unlink(missing_ok=True)


class _Scoring:
    """The corpora with their listings, and where they are scored."""

    def __init__(self, corpora: dict[str, Corpus], scores: Path, runner: Runner) -> None:
        self.corpora, self.scores, self.runner = corpora, scores, runner
        self.listings = {source: corpus.listing() for source, corpus in corpora.items()}

    def table(self, scorer: Scorer, source: str, wanted: pl.DataFrame | None = None) -> pl.DataFrame:
        """Scores of the source's documents, or of those whose ids are in `wanted`, sorted by id."""
        listing = self.listings[source]
        if wanted is not None:
            listing = listing.join(wanted, on="id", how="semi")
        corpus, folder = self.corpora[source], self.scores / source
        return score_files(corpus, scorer, folder, runner=self.runner, listing=listing)

    def table_of(self, source: str, scorer: Scorer, wanted: pl.DataFrame) -> pl.DataFrame:
        """As `table`, with the source first: for the cuts that ask for more scores near their cut."""
        return self.table(scorer, source, wanted)

    def rows(self, source: str, wanted: pl.DataFrame) -> pl.DataFrame:
        """`id, text, url` of the documents whose ids are in `wanted`."""
        return self.corpora[source].rows(self.listings[source].join(wanted, on="id", how="semi"))

    def texts(self, source: str, ids: Sequence[str]) -> list[str]:
        """Texts in the order of `ids`."""
        return self.corpora[source].texts(self.listings[source], ids)


def _judge(
    scoring: _Scoring,
    capabilities: Mapping[str, Sequence[str]],
    scorers: Scorers,
    settings: CascadeSettings,
    early: Mapping[str, pl.DataFrame],
    warnings: list[str],
) -> dict[str, Cuts]:
    """The survivors of each cut of each source, with the scores so far; those of `domain` are ranked.

    `asked` and `judged` hold all that reached the reasoning and the domain cut, ranked. One model after another
    goes over all sources, so that workers load it once.
    """
    found: dict[str, Cuts] = {}
    for source, listing in scoring.listings.items():
        read, before = listing.select("id"), early[source]
        exact = read.join(before.filter(kind="exact"), on="id", how="anti")
        minhash = exact.join(before, on="id", how="anti")
        found[source] = {"read": read, "exact": exact, "minhash": minhash}
        found[source] |= _in_language(scoring, source, minhash, scorers, settings)
        rated = scoring.table(scorers.classifier, source, found[source]["language"])
        rule = settings.educational_of.get(source, settings.educational)
        decision = decide(
            rated, rule, scorers.classifier, scoring.scores / source, partial(scoring.table_of, source)
        )
        rated, taught = decision.scores.select("id", "educational_score"), decision.passing
        if decision.recheck is not None:
            warnings.append(decision.recheck.sentence(source))
        if warning := few_passed(source, taught.height, rated.height, rule):
            warnings.append(warning)
        found[source] |= {"rated": rated, "educational": taught}
    for source, cuts in found.items():
        judge = scorers.judges["reasoning"]
        share = settings.reasoning_share
        cuts["asked"] = _asked(scoring, source, cuts["educational"], judge, "reasoning", share, warnings)
        cuts["reasoning"] = top_share(cuts["asked"], "reasoning_margin", settings.reasoning_share)
    prompts = {source: domain_prompt(capabilities.get(source, ())) for source in found}
    for source in sorted(found, key=prompts.__getitem__):
        judge, cuts = scorers.judges[prompts[source]], found[source]
        share = settings.domain_share
        cuts["judged"] = _asked(scoring, source, cuts["reasoning"], judge, "domain", share, warnings)
        cuts["domain"] = top_share(cuts["judged"], "domain_margin", settings.domain_share)
    return found


def _in_language(
    scoring: _Scoring, source: str, reached: pl.DataFrame, scorers: Scorers, settings: CascadeSettings
) -> Cuts:
    """`language`, the documents that pass the source's rule, and `spoken`, the scores; all of them without a rule."""
    rule = settings.language_of.get(source)
    if rule is None or scorers.language is None:
        return {"language": reached}
    spoken = scoring.table(scorers.language, source, reached)
    passed = passing_language(spoken, rule)
    if spoken.height and not passed.height:
        raise none_passed(source, spoken, rule)
    return {"spoken": spoken, "language": passed.select("id")}


def _asked(
    scoring: _Scoring,
    source: str,
    table: pl.DataFrame,
    judge: Scorer,
    name: str,
    share: float,
    warnings: list[str],
) -> pl.DataFrame:
    """`table` ranked, with the judge's margin and calibrated probability as `<name>_margin` and `<name>_p`."""
    scores = judge_scores(judge, table, share, partial(scoring.table_of, source))
    warnings += judge_notes(source, scores, judge)
    wanted = scores.select(
        "id", pl.col("margin").alias(f"{name}_margin"), pl.col("p1_calibrated").alias(f"{name}_p")
    )
    return top_share(table.join(wanted, on="id", how="inner"), f"{name}_margin", 1.0)


def _deduplicate(
    scoring: _Scoring,
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


def _choose(
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


def _write_representative(path: Path, table: pl.DataFrame, scoring: _Scoring, source: str) -> None:
    joined = table.join(scoring.rows(source, table), on="id", how="left", maintain_order="left")
    joined = joined.with_columns(pl.lit(source).alias("source"))
    missing = [name for name in REPRESENTATIVE_SCHEMA.names if name not in joined.columns]
    joined = joined.with_columns(pl.lit(None).alias(name) for name in missing)
    arrow = joined.select(REPRESENTATIVE_SCHEMA.names).to_arrow().cast(REPRESENTATIVE_SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(arrow.combine_chunks(), temporary, compression="zstd")
