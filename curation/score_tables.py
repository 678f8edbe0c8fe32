"""Score tables: what every scorer writes beside the documents, and the exact selections made from them.

A scorer never drops a document. Its table `scores/<source>/<scorer>.parquet` has one row per document id,
sorted by id, and a fingerprint of the model, the prompt and the settings; thresholds are applied afterwards,
so they can be changed without scoring again. A table is used again when its fingerprint matches, and only
documents that it lacks are scored; a table of other settings is set aside, and found again when they come
back. Work is done in units of at most `UNIT_DOCUMENTS` documents of one file (`curation.scoring`), on one
machine or many; a scoring that was killed goes on from the parts of its units, and ends with the bytes of an
undisturbed one, because the units are a function of the files alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from curation.atomic import hash_folder, hash_value, read_json, replacing, write_json
from curation.documents import Document
from curation.errors import DataError, MachineError, RecipeError
from curation.scorer import Scorer
from curation.scoring import guard
from curation.scoring.corpus import Corpus, spill
from curation.scoring.execution import Execution, Runner, Work
from curation.scoring.parts import part_path, part_schema, read_part, scorer_facts
from curation.scoring.runners import open_runner
from curation.scoring.units import UNIT_DOCUMENTS, Unit, plan_units, write_units

_KEY = "mixwright.fingerprint"
ROW_GROUP_ROWS = 2**18


def score_files(
    corpus: Corpus,
    scorer: Scorer,
    folder: Path | str,
    *,
    runner: Runner | None = None,
    listing: pl.DataFrame | None = None,
    unit_documents: int = UNIT_DOCUMENTS,
) -> pl.DataFrame:
    """Score the documents of `corpus` and return `id` and the scorer's columns for exactly these, sorted by id.

    folder  : `scores/<source>`; the table, its JSON and, while it works, hidden part files are written there
    runner  : see `scoring.runners.open_runner`; this process when None. The bytes do not depend on it
    listing : the rows of `corpus.listing()` to be scored, where not all are wanted

    The table keeps rows of earlier calls with the same fingerprint. Such a row may differ in its last bits
    from one scored afresh, since it was padded beside other texts. Raises DataError when two documents share
    an id, a score is not finite or the scorer fails on a document, MachineError when workers are lost more
    often than the runner allows; all that was scored is kept.
    """
    folder = Path(folder)
    listing = corpus.listing() if listing is None else listing
    facts = scorer_facts(scorer, unit_documents)
    fingerprint = hash_value(facts)
    known = _known(folder, scorer.name, fingerprint)
    missing = listing if known is None else listing.join(known, on="id", how="anti")
    if missing.height or known is None:
        plan = _Plan(missing, corpus, scorer, folder, fingerprint, unit_documents)
        _carry_out([plan], runner)
        fresh = _rows(plan.units, plan.parts, scorer, fingerprint, plan.folder)
        known = (fresh if known is None else pl.concat([known, fresh])).sort("id")
        _set_aside(folder, scorer.name, fingerprint)
        _write_table(folder / f"{scorer.name}.parquet", known, fingerprint)
    _describe(folder, scorer.name, facts, fingerprint, known)
    for leftover in (_work(folder, scorer), _parts(folder, scorer, fingerprint)):
        shutil.rmtree(leftover, ignore_errors=True)
    return known.join(listing.select("id"), on="id", how="semi").sort("id")


def score_ahead(
    wanted: Sequence[tuple[Corpus, Path, pl.DataFrame]],
    scorer: Scorer,
    runner: Runner,
    *,
    unit_documents: int = UNIT_DOCUMENTS,
) -> None:
    """Make the parts of several corpora side by side, so that `score_files` finds those of each: a source of few
    documents would leave most workers idle. Errors are those of `score_files`.

    wanted : corpus, folder and listing as `score_files` takes them
    """
    fingerprint = hash_value(scorer_facts(scorer, unit_documents))
    plans = []
    for corpus, folder, listing in wanted:
        known = _known(folder, scorer.name, fingerprint)
        missing = listing if known is None else listing.join(known, on="id", how="anti")
        plans.append(_Plan(missing, corpus, scorer, folder, fingerprint, unit_documents))
    _carry_out(plans, runner)


def score_source(
    documents: Sequence[Document],
    scorer: Scorer,
    folder: Path | str,
    *,
    runner: Runner | None = None,
    unit_documents: int = UNIT_DOCUMENTS,
) -> pl.DataFrame:
    """`score_files` for documents (of one source) in memory; their order does not matter."""
    folder = Path(folder)
    file = folder / f".{scorer.name}.documents.parquet"
    source = documents[0].source if documents else folder.name
    try:
        corpus = spill(documents, source, file)
        return score_files(corpus, scorer, folder, runner=runner, unit_documents=unit_documents)
    finally:
        file.unlink(missing_ok=True)


def top_share(scores: pl.DataFrame, by: str, share: float, *, within: str | None = None) -> pl.DataFrame:
    """The top ceil(share x n) rows by `by`, descending; equal scores are ordered by id. Exact for any row
    order.

    With `within`, a column such as `source`, the share is taken inside each of its values. The product is
    computed
    with the decimal that `share` prints as: ceil(0.1 x 30) is 3, although 0.1 * 30 > 3 in floating point.
    Rows come back ranked. Raises RecipeError unless 0 < share <= 1.

    >>> top_share(pl.DataFrame({"id": ["c", "a", "b"], "p": [0.5, 0.1, 0.5]}), "p", 0.3)["id"].to_list()
    ['b']
    """
    return top_rows(scores, by, None, share=share, within=within)


def top_rows(
    scores: pl.DataFrame, by: str, rows: int | None, *, share: float = 1.0, within: str | None = None
) -> pl.DataFrame:
    """As `top_share`, and at most `rows` (of each group)."""
    if not 0 < share <= 1:
        raise RecipeError(
            f"The share to keep is {share}",
            remedy="Give a share above 0 and at most 1, such as 0.1 for the top 10 %",
        )
    ranked = scores.sort([by, "id"], descending=[True, False])
    sizes = ranked.group_by(within).len().rows() if within else [(None, ranked.height)]
    kept = {group: min(share_of(share, size), size if rows is None else rows) for group, size in sizes}
    if within is None:
        return ranked.head(kept[None])
    limit = pl.col(within).replace_strict(kept, return_dtype=pl.Int64)
    return ranked.filter(pl.int_range(pl.len()).over(within) < limit)


def share_of(share: float, count: int) -> int:
    """ceil(share x count), exact in the decimal that `share` prints as."""
    return math.ceil(Fraction(repr(float(share))) * count)


def model_fingerprint(model: str) -> dict[str, str]:
    """What identifies a model: the hash of its folder, or a hub id with the commit that it resolves to."""
    if Path(model).is_dir():
        files = sorted(p for p in Path(model).rglob("*") if p.is_file())
        return {"folder_sha256": _folder_hash(model, tuple((str(p), *_stamp(p)) for p in files))}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise DataError(
            f"There is no model folder or hub model of this name: {str(error).splitlines()[0].rstrip('.')}",
            where=model,
            remedy="Check the name; a model that is not on this machine must be downloaded first",
        ) from error
    return {"hub": model, "revision": str(getattr(config, "_commit_hash", None))}


@lru_cache(maxsize=64)
def _folder_hash(folder: str, stamps: tuple[tuple[Any, ...], ...]) -> str:
    return hash_folder(folder)  # gigabytes for a large judge, so not once per source


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Plan:
    """The units of what is missing of one corpus; `todo` are those without a valid part."""

    def __init__(
        self,
        missing: pl.DataFrame,
        corpus: Corpus,
        scorer: Scorer,
        folder: Path,
        fingerprint: str,
        unit_documents: int,
    ) -> None:
        self.scorer, self.fingerprint, self.unit_documents = scorer, fingerprint, unit_documents
        self.name = f"{scorer.name}: {corpus.source}"
        self.parts, self.folder = _parts(folder, scorer, fingerprint), _work(folder, scorer)
        self.units = plan_units(missing, corpus.files, corpus.source, fingerprint, unit_documents)
        self.todo = _not_done(self.units, self.parts, scorer, fingerprint)

    def work(self, runner: Runner) -> Work:
        """What the runner is given."""
        from curation.scoring.blocks import KeepSentence, ReadUnits, ScoreBlock

        tasks, errors = runner.tasks(len(self.todo)), self.folder / "errors"
        listed = hash_value([[unit.name, unit.file] for unit in self.units])
        guard.begin(self.folder, {"settings": self.fingerprint, "input": listed, "tasks": tasks}, self.name)
        shutil.rmtree(errors, ignore_errors=True)
        write_units(self.folder / "units.parquet", self.todo)
        return Work(
            [
                ReadUnits(self.folder / "units.parquet", self.parts),
                ScoreBlock(
                    self.scorer,
                    self.parts,
                    unit_documents=self.unit_documents,
                    fingerprint=self.fingerprint,
                ),
                KeepSentence(errors),
            ],
            name=self.name,
            tasks=tasks,
            logs=self.folder,
            total=sum(unit.documents for unit in self.todo),
            missing=lambda: sum(not part_path(self.parts, unit.name).is_file() for unit in self.todo),
            done=lambda: sum(u.documents for u in self.todo if part_path(self.parts, u.name).is_file()),
            failed=lambda: any(errors.glob("*.json")),
        )


def _carry_out(plans: Sequence[_Plan], runner: Runner | None) -> None:
    """Make the parts that are missing; in this process when `runner` is None."""
    from curation.scoring.blocks import raise_kept_sentence

    if runner is None:
        with open_runner(Execution()) as here:
            return _carry_out(plans, here)
    plans = [plan for plan in plans if plan.todo]
    if plans:
        runner.run([plan.work(runner) for plan in plans])
    for plan in plans:
        raise_kept_sentence(plan.folder / "errors")
    return None


def _not_done(units: Sequence[Unit], parts: Path, scorer: Scorer, fingerprint: str) -> list[Unit]:
    """Units without a valid part; parts that are damaged are removed."""
    todo = []
    for unit in units:
        if not part_path(parts, unit.name).is_file():
            todo.append(unit)
        elif read_part(parts, unit.name, scorer.columns, fingerprint) is None:
            part_path(parts, unit.name).unlink()
            todo.append(unit)
    return todo


def _rows(units: Sequence[Unit], parts: Path, scorer: Scorer, fingerprint: str, work: Path) -> pl.DataFrame:
    tables = [part_schema(scorer.columns).empty_table()]
    for unit in units:
        table = read_part(parts, unit.name, scorer.columns, fingerprint)
        if table is None:
            raise MachineError(
                f"The executor has ended, but scores of {scorer.name} for {unit.documents} documents of "
                f"{unit.source} are missing or damaged",
                where=unit.file,
                remedy=f"Look at the logs in {work}, and run again: what was scored is kept",
            )
        tables.append(table)
    return pl.DataFrame(pa.concat_tables(tables))


def _work(folder: Path, scorer: Scorer) -> Path:
    return folder / f".{scorer.name}.work"


def _parts(folder: Path, scorer: Scorer, fingerprint: str) -> Path:
    return folder / f".{scorer.name}.parts-{fingerprint[:16]}"


def _aside(folder: Path, name: str, fingerprint: str) -> Path:
    """Where a table waits whose settings are not today's; not `.parquet`, since it is not the table."""
    return folder / f".{name}-{fingerprint[:16]}.set_aside"


def _known(folder: Path, name: str, fingerprint: str) -> pl.DataFrame | None:
    """The table of the same model and settings, if there is one that is whole."""
    for path in (folder / f"{name}.parquet", _aside(folder, name, fingerprint)):
        try:
            if _fingerprint(path) == fingerprint:
                table = pl.DataFrame(pq.read_table(path))
                if path.suffix != ".parquet":
                    _set_aside(folder, name, fingerprint)
                    path.replace(folder / f"{name}.parquet")
                return table
        except (pa.ArrowException, OSError):
            continue
    return None


def _set_aside(folder: Path, name: str, fingerprint: str) -> None:
    """Keep a table of other settings: it may have cost days."""
    path = folder / f"{name}.parquet"
    try:
        other = _fingerprint(path)
    except (pa.ArrowException, OSError):
        return
    if other and other != fingerprint:
        path.replace(_aside(folder, name, other))


def _fingerprint(path: Path) -> str:
    return (pq.read_metadata(path).metadata or {}).get(_KEY.encode(), b"").decode()


def _write_table(path: Path, table: pl.DataFrame, fingerprint: str) -> None:
    with replacing(path) as temporary:
        table.rechunk().write_parquet(
            temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS, metadata={_KEY: fingerprint}
        )


def _describe(folder: Path, name: str, facts: dict[str, Any], fingerprint: str, table: pl.DataFrame) -> None:
    path = folder / f"{name}.json"
    value = {
        "scorer": name,
        "fingerprint": fingerprint,
        "made_by": facts,
        "documents": table.height,
        "ids_sha256": hash_value(table["id"].to_list()),
    }
    if not path.exists() or read_json(path) != value:
        write_json(path, value)
