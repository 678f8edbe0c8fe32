"""One document with everything that decided its fate, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import yaml

from curation.errors import DataError
from curation.fates import TITLES, CutTable, cut_tables, duplicates_of, verdicts_of
from curation.funnel import STAGES
from mixing.report.numbers import telling_decimals

EXCERPT_CHARACTERS = 400


def find_document(run: Path, start: str) -> dict[str, Any]:
    """Fate, scores and text of the document whose id is `start`, or else begins with it.

    Keys: the document's own (`id`, `source`, `url`, `meta`), `verdict` and `reason`; `steps`, one for each cut that it
    reached, in order, with value, rank, threshold and whether it passed; `duplicate_of`, with the kept document and the
    similarity; `duplicates`, those that were dropped for its sake; `held_out`; `benefits`; and `text`.

    Raises DataError when no document or more than one matches.
    """
    files = sorted(run.glob("documents/*/*.parquet"))
    if not files:
        raise DataError("The run has no documents yet", where=str(run), remedy="Run `mixwright curate` first")
    matches = pl.concat(
        [pl.scan_parquet(file).filter(pl.col("id").str.starts_with(start)).collect() for file in files]
    )
    exact = matches.filter(pl.col("id") == start)
    matches = exact if exact.height else matches
    if matches.height != 1 or not start:
        problem = "No document has" if matches.height == 0 else f"{matches.height} documents have"
        raise DataError(
            f"{problem} an id that begins with `{start}`",
            where=str(run),
            remedy="Ids stand in documents/, representative/ and the report; give more of its characters",
        )
    found: dict[str, Any] = dict(matches.row(0, named=True))
    text = found.pop("text")
    found |= _fate(run, found["id"], found["source"], files)
    found["held_out"] = _held_out(run, found["id"])
    found["benefits"] = _benefits(run, found["id"])
    return found | {"text": text}


def _fate(run: Path, name: str, source: str, files: list[Path]) -> dict[str, Any]:
    """Verdict, steps and duplicates of a document; what the run lacks is absent."""
    fate: dict[str, Any] = {"verdict": None, "reason": None, "steps": []}
    duplicates = duplicates_of(run, name)
    fate["duplicate_of"] = [row | {"text": _text(files, str(row["kept_instead"]))} for row in duplicates]
    fate["duplicates"] = _dropped_for(run, name)
    if not (run / "representative" / "verdicts.parquet").is_file():
        return fate
    verdicts = verdicts_of(run)
    own = verdicts.filter(pl.col("id") == name)
    if not own.height:
        fate["verdict"] = "not read: set aside for the test"
        return fate
    fate["verdict"], fate["reason"] = own["verdict"][0], own["reason"][0]
    recipe = _recipe(run)
    cuts = cut_tables(run, source, _capabilities(recipe, source), verdicts)
    fate["steps"] = _steps(name, fate["verdict"], cuts, _thresholds(recipe, source), duplicates)
    return fate


def _steps(
    name: str,
    verdict: str,
    cuts: list[CutTable],
    thresholds: dict[str, str],
    duplicates: list[dict[str, object]],
) -> list[dict[str, Any]]:
    by_name = {cut.name: cut for cut in cuts}
    kinds = {str(row["kind"]): row for row in duplicates}
    end = STAGES.index(verdict) if verdict in STAGES else len(STAGES)
    steps: list[dict[str, Any]] = []
    for place, stage in enumerate(STAGES[1:], 1):
        if place > end:
            break
        if stage == "language" and stage not in thresholds:
            continue
        step: dict[str, Any] = {"step": stage, "passed": place < end}
        cut = by_name.get(stage)
        if cut is not None:
            row = cut.table.filter(pl.col("id") == name)
            if row.height:
                step |= {
                    "passed": bool(row["passed"][0]),
                    "score": cut.score,
                    "value": float(row["value"][0]),
                    "rank": int(row["rank"][0]),
                    "of": cut.table.height,
                    "kept": cut.kept,
                    "last_kept": cut.last_kept,
                    "first_dropped": cut.first_dropped,
                }
        kind = "semantic" if stage == "deduplicated" else stage
        if kind in kinds and not step["passed"]:
            step |= {key: kinds[kind][key] for key in ("kept_instead", "similarity")}
        if stage in thresholds:
            step["rule"] = thresholds[stage]
        steps.append(step)
    return steps


def _dropped_for(run: Path, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for file, value in (
        (run / "near_duplicates" / "near_duplicates.parquet", "similarity"),
        (run / "representative" / "duplicates.parquet", "cosine"),
    ):
        if file.is_file():
            table = pl.scan_parquet(file).filter(pl.col("kept_instead") == name).collect()
            for row in table.iter_rows(named=True):
                kind = row.get("kind", "semantic")
                rows.append({"kind": kind, "dropped": row["dropped"], "similarity": row[value]})
    return rows


def _recipe(run: Path) -> dict[str, Any]:
    file = run / "recipe.yaml"
    loaded = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return loaded if isinstance(loaded, dict) else {}


def _capabilities(recipe: dict[str, Any], source: str) -> list[str]:
    named = {row.get("name"): row.get("capabilities") or [] for row in recipe.get("sources", [])}
    return list(named.get(source, []))


def _thresholds(recipe: dict[str, Any], source: str) -> dict[str, str]:
    """The rule of each cut, as the recipe says it."""
    curation = recipe.get("curation", {})
    educational, judge = curation.get("educational", {}), curation.get("judge", {})
    near, late = curation.get("near_duplicates", {}), curation.get("deduplication", {})
    rule = educational.get("per_source", {}).get(source, educational.get("rule"))
    spoken = curation.get("language") or {}
    chain = " to any earlier document, dropped ones too" if late.get("rule") == "semdedup" else ""
    languages = spoken.get("per_source", {}).get(source, spoken.get("languages")) or []
    values = {
        "language": ("{}", " or ".join(languages) or None),
        "minhash": ("Jaccard below {}", near.get("similarity")),
        "educational": ("{}", rule),
        "reasoning": ("the top {}", judge.get("reasoning_share")),
        "domain": ("the top {}", judge.get("domain_share")),
        "deduplicated": (f"cosine below {{}}{chain}", late.get("threshold")),
        "representative": ("the first {}", curation.get("representative_documents")),
    }
    return {name: words.format(value) for name, (words, value) in values.items() if value is not None}


def _text(files: list[Path], name: str) -> str | None:
    for file in files:
        table = pl.scan_parquet(file).filter(pl.col("id") == name).select("text").collect()
        if table.height:
            return str(table["text"][0])
    return None


def _held_out(run: Path, name: str) -> list[str]:
    files = [file for split in ("probes", "test") for file in sorted(run.glob(f"{split}/*.parquet"))]
    return [
        f"{file.parent.name}: {file.stem}"
        for file in files
        if pl.scan_parquet(file).filter(pl.col("id") == name).collect().height
    ]


def _benefits(run: Path, name: str) -> dict[str, float]:
    """The mean over the checkpoints of each influence file that scored the document."""
    found: dict[str, float] = {}
    for file in sorted(run.glob("influence/*.parquet")):
        mean = pl.scan_parquet(file).filter(pl.col("document") == name).collect()["benefit"].mean()
        if isinstance(mean, float):
            found[file.stem] = mean
    return found


def document_lines(found: dict[str, Any]) -> list[str]:
    """What `find_document` gives, as lines for people; the caller makes hidden characters visible."""
    lines = [f"{key}: {_one_line(found[key])}" for key in ("id", "source", "url", "meta") if found.get(key)]
    if found["verdict"] is not None:
        kept = "kept" if found["verdict"] == "kept" else f"dropped at `{found['verdict']}`"
        kept = found["verdict"] if str(found["verdict"]).startswith("not read") else kept
        reason = f": {_one_line(found['reason'])}" if found["reason"] else ""
        lines.append(f"verdict: {kept}{reason}")
    lines += [f"  {_step_line(step)}" for step in found["steps"]]
    for row in found["duplicate_of"]:
        value = f"{row['similarity']:.4f}"
        lines.append(
            f"duplicate ({row['kind']}, similarity {value}) of {_one_line(row['kept_instead'])}, which begins:"
        )
        lines.append(f"  {_one_line((row['text'] or '(its text is not here)')[:EXCERPT_CHARACTERS])}")
    for row in found["duplicates"]:
        value = f"{row['similarity']:.4f}"
        lines.append(f"kept instead of {_one_line(row['dropped'])} ({row['kind']}, similarity {value})")
    lines += [f"held out in {where}" for where in found["held_out"]]
    lines += [f"benefit, {name}: {value:.6g}" for name, value in found["benefits"].items()]
    return [*lines, "text:", found["text"]]


def _step_line(step: dict[str, Any]) -> str:
    parts = [TITLES.get(step["step"], step["step"])]
    if "value" in step:
        decimals = telling_decimals(step["last_kept"], step["first_dropped"])
        place = f"rank {step['rank']:,} of {step['of']:,}, {step['kept']:,} kept"
        parts.append(f"{step['score']} {step['value']:.{decimals}f}, {place}")
        ends = [
            f"{words} {step[key]:.{decimals}f}"
            for words, key in (("last kept", "last_kept"), ("first dropped", "first_dropped"))
            if step[key] is not None
        ]
        parts += ends
    if "kept_instead" in step:
        parts.append(f"similarity {step['similarity']:.4f} to {_one_line(step['kept_instead'])}")
    if "rule" in step:
        parts.append(f"rule: {step['rule']}")
    return f"{'passed' if step['passed'] else 'FELL  '} {'; '.join(parts)}"


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())
