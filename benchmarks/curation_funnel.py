"""The funnel on five real corpora, and how many templated pages each step of deduplication finds.

    python -m benchmarks.curation_funnel --corpora FOLDER [--out FOLDER] [--write]

FOLDER holds wiki, math_text, formal, stackexchange and books as .jsonl.gz. The recipe is beside this file. `--write`
puts the tables into docs/curation.md, between their marks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import polars as pl
import yaml

from benchmarks.measure import CORPORA, machine, publish, table
from curation.atomic import read_json
from curation.documents import read_documents
from curation.minhash import MinhashSettings, shingles
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from recipes.budget import plan_recipe_budget
from recipes.cli.funnel import STEPS, compact, percent
from recipes.execute import open_run, run_recipe
from recipes.funnel import funnel_of
from recipes.pipeline import Run, read_stage_record
from recipes.stages import STAGES

RECIPE = Path(__file__).with_suffix(".yaml")
DOCUMENT = Path(__file__).parents[1] / "docs" / "curation.md"
OUT = Path(tempfile.gettempdir()) / "curation_funnel"
MEASURED = ("documents", "near_duplicates", "raters", "representative")


def recipe_for(corpora: Path, out: Path, *, max_megabytes: float | None = None) -> Path:
    """Write the recipe with the corpora's own paths into `out`."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for source in recipe["sources"]:
        source["path"] = str((corpora / source["path"]).resolve())
        if max_megabytes is not None:
            source["max_megabytes"] = max_megabytes
    out.mkdir(parents=True, exist_ok=True)
    file = out / "curation_funnel.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def funnel_table(run: Run) -> str:
    """Documents and tokens of each source at each step, and the share of the step before."""
    rows = funnel_of(run.folder)
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    by_source: dict[str, dict[str, dict[str, object]]] = {}
    for row in rows:
        by_source.setdefault(row["source"], {})[row["stage"]] = row
    lines = []
    for source, found in by_source.items():
        cells = [f"{found[s]['documents']:,} ({percent(found[s]['share'])})" for s in stages[1:]]  # type: ignore[arg-type]
        tokens = " → ".join(compact(found[s]["tokens"]) for s in (stages[0], stages[-1]))  # type: ignore[arg-type]
        lines.append([source, f"{found['read']['documents']:,}", *cells, tokens])
    heads = [STEPS.get(stage, stage) for stage in stages]
    return table(["source", *heads, "tokens"], lines)


def time_table(run: Run) -> str:
    """CPU seconds of each stage, children included."""
    rows = []
    for name in MEASURED:
        record = read_stage_record(run, STAGES[name]) or {}
        rows.append([name, f"{record.get('cpu_seconds', 0):.0f}", f"{record.get('wall_seconds', 0):.0f}"])
    return table(["stage", "CPU s", "wall s"], rows)


def budget_table(run: Run, target: int) -> str:
    """What the planner says from a pilot of 400 documents of each source."""
    rows = []
    for plan in plan_recipe_budget(run, target, 400):
        interval = f"{compact(plan.low)} to {'any' if plan.high is None else compact(plan.high)}"
        gives = (
            "–"
            if plan.expected is None
            else f"{plan.expected:,.0f} ({plan.expected_low:,.0f} to {plan.expected_high:,.0f})"
        )
        rows.append(
            [plan.source, compact(plan.needed), interval, compact(plan.available), gives, plan.verdict]
        )
    return table(["source", "to read", "90 % interval", "has", "gives", "verdict"], rows)


def pages_table(run: Run, out: Path) -> str:
    """Near-duplicates within stackexchange that each step finds among all its documents, by threshold."""
    from curation.embedding import embed
    from curation.semantic_duplicates import find_duplicates

    folder = run.path("documents", "stackexchange")
    documents = sorted(read_documents(folder), key=lambda document: document.id)
    rows = []
    for name, settings in (
        ("exact", NearDuplicateSettings(minhash=None)),
        *(
            (f"MinHash, Jaccard {s}", NearDuplicateSettings(minhash=MinhashSettings(s, buckets=b, hashes=h)))
            for s, b, h in ((0.8, 20, 6), (0.7, 20, 6), (0.6, 40, 4), (0.55, 40, 4), (0.5, 40, 4))
        ),
    ):
        started = time.process_time()
        found = find_near_duplicates({"stackexchange": folder}, out / "pages", settings)
        rows.append([name, found.height, f"{time.process_time() - started:.1f}"])
    started = time.process_time()
    vectors = embed([document.text for document in documents], str(run.path("raters", "embedder")))
    seconds = time.process_time() - started
    for threshold in (0.98, 0.95, 0.9):
        started = time.process_time()
        found = find_duplicates(vectors, threshold)
        rows.append(
            [
                f"semantic (the run's embedder), cosine {threshold}",
                len(found),
                f"{time.process_time() - started + seconds:.1f}",
            ]
        )
    short = sum(len(shingles(document.text, MinhashSettings())) == 0 for document in documents)
    note = (
        f"\n{len(documents):,} documents; {short} have fewer than five words and can only be exact copies.\n"
    )
    return table(["step, over the whole source", "documents dropped", "CPU s"], rows) + note


def chain_text(run: Run) -> str:
    """What the steps of the run itself dropped in stackexchange, one after another."""
    verdicts = pl.read_parquet(run.path("representative", "verdicts.parquet"))
    own = verdicts.filter(pl.col("source") == "stackexchange")
    counts = dict(own.group_by("verdict").len().rows())
    report = {row["source"]: row for row in read_json(run.path("near_duplicates", "report.json"))["sources"]}
    before = report["stackexchange"]
    return (
        f"In the run itself, stackexchange lost {before['exact']} exact and {before['minhash']} MinHash duplicates of "
        f"{before['documents']:,} before scoring, and {counts.get('deduplicated', 0)} semantic ones of those that "
        "had passed every cut.\n"
    )


def funnel(*, write: bool, corpora: Path = CORPORA, out: Path = OUT) -> None:
    """Run the recipe, or what of it is not done, and print or publish the tables."""
    run = open_run(recipe_for(corpora, out), out / "run")
    run_recipe(run, "representative")
    facts = machine("datatrove", "polars", "torch", "transformers")
    text = "\n".join(
        [
            f"{facts}.\n",
            funnel_table(run),
            time_table(run),
            pages_table(run, out),
            chain_text(run),
            budget_table(run, 100),
        ]
    )
    publish("curation funnel", text, write=write, document=DOCUMENT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpora", type=Path, default=CORPORA)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    funnel(write=arguments.write, corpora=arguments.corpora, out=arguments.out)
