"""Sources: a corpus of a recipe, read into a folder of documents.

Three kinds: a dataset of the Hugging Face hub (or any folder that `datasets` loads), local files, and a
collection of the running Python installation. Whatever the kind, long texts are cut into pieces, exact
duplicates are dropped, and of what is left a sample of `max_bytes` is kept: the pieces with the smallest
seeded hash of their id, so that the sample depends neither on the order of the files nor on their number.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curation.atomic import read_json, replacing_folder, write_json
from curation.documents import Document, document_id, write_documents
from curation.errors import RecipeError
from curation.hub import read_hub
from curation.installation import read_collection
from curation.local import local_files, read_local
from curation.pieces import cut
from curation.progress import progress
from curation.records import BrokenRecord, ReadCounts

KINDS = ("hub", "local", "python")
CAPABILITIES = ("code", "mathematics", "knowledge")
OPTIONS: dict[str, frozenset[str]] = {
    "hub": frozenset(
        {"subset", "split", "data_files", "revision", "text_field", "piece_bytes", "scan_bytes"}
    ),
    "local": frozenset({"text_field", "piece_bytes", "scan_bytes"}),
    "python": frozenset({"piece_bytes", "scan_bytes"}),
}
PYTHON_PIECE_BYTES = 4000
SCAN_FACTOR = 4
"""Hub datasets and Python collections are read up to this many times `max_bytes`, to sample from."""
PART_BYTES = 256 * 2**20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class SourceSpec:
    """One source of a recipe.

    name         : letters, digits, `_`, `-` and `.`; also the name of its folder
    kind         : `hub`, `local` or `python`
    path         : for `local`, a file, a folder (read with all folders in it) or a glob pattern
    dataset      : for `hub`, what `datasets.load_dataset` takes: a name on the hub, a folder, or `json`
    collection   : for `python`, one of `curation.installation.COLLECTIONS`
    capabilities : those of `CAPABILITIES` that it should serve; none for noise
    options      : `text_field` (default `text`); `piece_bytes`, the most UTF-8 bytes of a document, longer
                   ones are cut (default 4000 for `python`, else 0, not cut); `scan_bytes`, the most bytes of
                   text to read before sampling (default 4 x max_bytes for `hub` and `python`, else all);
                   and for `hub` `subset`, `split` (default `train`), `data_files` and `revision`
    """

    name: str
    kind: str
    path: str | None = None
    dataset: str | None = None
    collection: str | None = None
    capabilities: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class SourceReport:
    """What became of the records of a source; `read.json` holds the same.

    read = broken + empty + documents, and pieces = kept + duplicates + not_sampled.

    read            : records read, broken ones included
    broken, empty   : records that are not documents, and those without a text
    documents       : the others
    pieces          : what the documents were cut into
    duplicates      : pieces equal to an earlier one but for case and white space
    not_sampled     : pieces beyond `max_bytes`
    kept, bytes     : pieces written, and their UTF-8 bytes
    broken_examples : the first broken and empty records, `{"where", "why"}`
    skipped_files   : files in the folder whose format is not read
    """

    source: str
    read: int = 0
    broken: int = 0
    empty: int = 0
    documents: int = 0
    pieces: int = 0
    duplicates: int = 0
    not_sampled: int = 0
    kept: int = 0
    bytes: int = 0
    broken_examples: tuple[dict[str, str], ...] = ()
    skipped_files: tuple[str, ...] = ()


def read_source(
    spec: SourceSpec, out: Path | str, *, max_bytes: int | None, seed: int, broken_tolerance: float = 0.01
) -> SourceReport:
    """Read a source into `out/<name>/part-00000.parquet` (and so on) and `out/<name>/read.json`, atomically.

    max_bytes        : the most UTF-8 bytes of text to keep, held in memory; None keeps all, streaming
    seed             : of the sample, of the order in which collections are read, and of generated text
    broken_tolerance : the share of broken records from which on the source is refused

    Documents get the ids `document_id(source, text)`; an id that the record had is in `meta["original_id"]`.
    The url of a piece is that of its origin and `#` and its number; `meta` holds `origin` and `piece`.
    Raises RecipeError for an impossible spec, DataError for a corpus that is missing, empty or too broken.
    """
    check_sources([spec])
    _check_amounts(spec, max_bytes, broken_tolerance)
    scan_bytes = spec.options.get("scan_bytes")
    if scan_bytes is None and spec.kind != "local" and max_bytes is not None:
        scan_bytes = SCAN_FACTOR * max_bytes
    if scan_bytes is None and spec.collection == "word_problems":
        raise RecipeError("Word problems never end", where=f"source {spec.name}", remedy="Set `max_bytes`")
    counts, tally = ReadCounts(), _Tally()
    documents = counts.documents(_records(spec, seed))
    pieces = _unique(_pieces(_until(documents, scan_bytes, spec.name), spec, tally), tally)
    if max_bytes is not None:
        pieces = iter(_sample(pieces, max_bytes, seed))
    with replacing_folder(Path(out) / spec.name) as folder:
        for number, part in enumerate(_parts(pieces, tally)):
            write_documents(folder / f"part-{number:05d}.parquet", part)
        counts.check(f"source {spec.name}", broken_tolerance)
        report = _report(spec, counts, tally)
        write_json(folder / "read.json", asdict(report))
    return report


def read_report(folder: Path | str) -> SourceReport:
    """The report that `read_source` wrote into `folder`."""
    values = read_json(Path(folder) / "read.json")
    tuples = {name: tuple(values[name]) for name in ("broken_examples", "skipped_files")}
    return SourceReport(**{**values, **tuples})


def check_sources(specs: Sequence[SourceSpec]) -> None:
    """Raise RecipeError for two sources of one name, a bad name, an unknown kind, option or capability."""
    seen: set[str] = set()
    for spec in specs:
        where = f"source {spec.name}"
        if not _NAME.fullmatch(spec.name):
            raise RecipeError(
                f"`{spec.name}` cannot be the name of a source, because it names a folder",
                remedy="Use letters, digits, `_`, `-` and `.`, beginning with a letter or a digit",
            )
        if spec.name.lower() in seen:
            raise RecipeError("Two sources have one name", where=where, remedy="Rename one of them")
        seen.add(spec.name.lower())  # some file systems do not tell A from a
        _known(spec.kind, KINDS, "kind", where)
        for capability in spec.capabilities:
            _known(capability, CAPABILITIES, "capability", where)
        for option in spec.options:
            _known(option, sorted(OPTIONS[spec.kind]), f"option of a `{spec.kind}` source", where)
        needed = {"hub": "dataset", "local": "path", "python": "collection"}[spec.kind]
        if not getattr(spec, needed):
            raise RecipeError(
                f"A `{spec.kind}` source needs `{needed}`", where=where, remedy=f"Add `{needed}`"
            )


def _known(value: str, known: Sequence[str], what: str, where: str) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        advice = f"Did you mean `{close[0]}`" if close else f"Choose of {', '.join(known)}"
        raise RecipeError(f"There is no {what} `{value}`", where=where, remedy=advice)


def _check_amounts(spec: SourceSpec, max_bytes: int | None, broken_tolerance: float) -> None:
    amounts = {"max_bytes": max_bytes, "scan_bytes": spec.options.get("scan_bytes")}
    for name, amount in amounts.items():
        if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int) or amount <= 0):
            where = f"source {spec.name}"
            raise RecipeError(f"`{name}` is {amount!r}", where=where, remedy="Give a number of bytes above 0")
    if not 0 <= broken_tolerance <= 1:
        raise RecipeError(f"`broken_tolerance` is {broken_tolerance}", remedy="Give a share between 0 and 1")


def _records(spec: SourceSpec, seed: int) -> Iterator[Document | BrokenRecord]:
    options = {
        name: value for name, value in spec.options.items() if name not in ("piece_bytes", "scan_bytes")
    }
    if spec.kind == "python":
        return read_collection(str(spec.collection), source=spec.name, seed=seed)
    if spec.kind == "local":
        return read_local(str(spec.path), source=spec.name, **options)
    return read_hub(str(spec.dataset), source=spec.name, seed=seed, **options)


@dataclass
class _Tally:
    documents: int = 0
    pieces: int = 0
    duplicates: int = 0
    kept: int = 0
    bytes: int = 0


def _until(documents: Iterable[Document], scan_bytes: int | None, name: str) -> Iterator[Document]:
    """Documents up to `scan_bytes` of text, with progress; the one that passes the mark is the last."""
    total = 0
    with progress(f"reading {name}", total=(scan_bytes or 0) / 1e6, unit="MB") as task:
        for document in documents:
            size = len(document.text.encode())
            yield document
            task.advance(size / 1e6)
            total += size
            if scan_bytes is not None and total >= scan_bytes:
                return


def _pieces(documents: Iterable[Document], spec: SourceSpec, tally: _Tally) -> Iterator[Document]:
    default = PYTHON_PIECE_BYTES if spec.kind == "python" else 0
    piece_bytes = spec.options.get("piece_bytes", default)
    for document in documents:
        tally.documents += 1
        own_id = document_id(spec.name, document.text)
        origin = own_id if document.origin == document.id else document.origin
        meta = {**(document.meta or {}), "origin": origin}
        if document.id != own_id:
            meta["original_id"] = document.id
        whole = not piece_bytes or len(document.text) <= piece_bytes // 4
        texts = [document.text] if whole else list(cut(document.text, piece_bytes))
        for number, text in enumerate(texts):
            if len(texts) > 1:
                text = text.strip("\r\n")
            if not text.strip():
                continue  # white space between two cuts
            tally.pieces += 1
            url = f"{document.url or origin}#{number}" if len(texts) > 1 else document.url
            extra = {**meta, "piece": number}
            yield Document(document_id(spec.name, text), text, spec.name, url, extra)


def _unique(documents: Iterable[Document], tally: _Tally) -> Iterator[Document]:
    """Drop what equals an earlier text but for case and white space (by a 64-bit hash: one false hit in 1e8
    documents is as likely as 3 in 10,000)."""
    seen: set[int] = set()
    for document in documents:
        normal = " ".join(document.text.split()).casefold()
        key = int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "big")
        if key in seen:
            tally.duplicates += 1
            continue
        seen.add(key)
        yield document


def _sample(documents: Iterable[Document], max_bytes: int, seed: int) -> list[Document]:
    """The documents of smallest seeded hash whose bytes together are at most `max_bytes`, in that order.

    At least one document is kept. Holds little more than `max_bytes` at any time: what is beyond the mark now
    will be beyond it for ever, and nothing behind a document that was turned away is taken either.
    """
    heap: list[tuple[int, str, int, Document]] = []
    total, limit = 0, 2**64
    for document in documents:
        key = int.from_bytes(hashlib.sha256(f"sample\0{seed}\0{document.id}".encode()).digest()[:8], "big")
        if key >= limit:
            continue
        size = len(document.text.encode())
        heapq.heappush(heap, (-key, document.id, size, document))
        total += size
        while total > max_bytes and len(heap) > 1:
            largest, _, size, _ = heapq.heappop(heap)
            limit = -largest
            total -= size
    return [document for _, _, _, document in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]


def _parts(documents: Iterator[Document], tally: _Tally) -> Iterator[list[Document]]:
    """Lists of documents of about `PART_BYTES`, counted; one empty list if there are none."""
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(document.text.encode())
        if size >= PART_BYTES:
            tally.kept, tally.bytes = tally.kept + len(part), tally.bytes + size
            yield part
            part, size = [], 0
    tally.kept, tally.bytes = tally.kept + len(part), tally.bytes + size
    if part or not tally.kept:
        yield part


def _report(spec: SourceSpec, counts: ReadCounts, tally: _Tally) -> SourceReport:
    skipped = local_files(str(spec.path)).skipped if spec.kind == "local" else ()
    return SourceReport(
        source=spec.name,
        read=counts.read,
        broken=counts.broken,
        empty=counts.empty,
        documents=tally.documents,
        pieces=tally.pieces,
        duplicates=tally.duplicates,
        not_sampled=tally.pieces - tally.duplicates - tally.kept,
        kept=tally.kept,
        bytes=tally.bytes,
        broken_examples=tuple({"where": b.where, "why": b.why} for b in counts.examples),
        skipped_files=skipped,
    )
