"""The budget planner on a recipe: a pilot of every source goes through the cascade, and its rates are extrapolated.

The scores of the pilot stay in the run's score tables, so the real run does not score these documents again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from curation.atomic import read_json, write_json
from curation.budget import Cost, Cut, SourceBudget, pilot_sample, plan_budget
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.documents import Document
from curation.educational import EducationalRule
from curation.judge_prompt import domain_prompt
from curation.scoring.corpus import Corpus
from curation.scoring.runners import open_runner
from curation.sources import read_report
from recipes.pipeline import Run, locked
from recipes.stages.curating import cascade_settings, execution_of, scorers
from recipes.stages.text import training_corpus

PILOT_DOCUMENTS = 2_000
TIMED_DOCUMENTS = 24


def plan_recipe_budget(
    run: Run, target: int = 10_000, pilot: int = PILOT_DOCUMENTS, *, level: float = 0.9
) -> list[SourceBudget]:
    """Write `budget/budget.json` into the run folder and return what it holds, a plan for each source.

    target : documents wanted of each source
    pilot  : documents of each source that go through the cascade, drawn uniformly by a hash of the id

    The stages `documents`, `near_duplicates` and `raters` must be done (`run_recipe` with the goal `raters` and
    `near_duplicates`). Raises the errors of the cascade and of `curation.budget.plan_budget`.
    """
    recipe, folder = run.recipe, run.path("budget")
    settings = replace(cascade_settings(recipe), documents=target)
    models = scorers(run)
    early = pl.read_parquet(run.path("near_duplicates", "near_duplicates.parquet"))
    dropped = set(early["dropped"].to_list())
    corpora = {source.name: training_corpus(run, source.name) for source in recipe.sources}
    ids = {name: corpus.listing()["id"] for name, corpus in corpora.items()}
    samples = {
        name: _sample(corpus, ids[name].to_list(), dropped, pilot, recipe.seed)
        for name, corpus in corpora.items()
    }
    with locked(run.folder), open_runner(execution_of(run)) as runner:
        select_representative(
            samples,
            recipe.capabilities_of,
            models,
            settings,
            scores=run.path("scores"),
            out=folder,
            runner=runner,
        )
    funnel = _funnel(folder)
    unique = {row["source"]: row for row in read_json(run.path("near_duplicates", "report.json"))["sources"]}
    plans = []
    for source in recipe.sources:
        sample = samples[source.name]
        size = len(sample.only) if sample.only is not None else 0
        cuts = pilot_cuts(source.name, unique[source.name], funnel.get(source.name, {}), settings)
        tables = {"near_duplicates": early, "deduplicated": pl.read_parquet(folder / "duplicates.parquet")}
        cuts = [
            replace(cut, groups=group_sizes(tables[cut.name], ids[source.name], cut.reached))
            if cut.name in tables
            else cut
            for cut in cuts
        ]
        available, at_least = _available(run, source.name, source.kind)
        plans.append(
            plan_budget(
                source.name,
                cuts,
                target,
                available=available,
                at_least=at_least,
                pilot=size,
                whole=size < pilot and not at_least,
                costs=measured_costs(_first(sample), models, recipe.capabilities_of[source.name]),
                level=level,
                seed=recipe.seed,
            )
        )
    write_json(folder / "budget.json", [asdict(plan) for plan in plans])
    return plans


def pilot_cuts(
    source: str, unique: dict[str, Any], counts: dict[str, int], settings: CascadeSettings
) -> list[Cut]:
    """The cuts of the cascade as the pilot saw them; a share that a setting states is taken from the setting."""
    rule = settings.educational_of.get(source, settings.educational)
    read, taught = counts.get("read", 0), counts.get("educational", 0)
    spoken = counts.get("language", read)
    reasoned, chosen = counts.get("reasoning", 0), counts.get("domain", 0)
    return [
        Cut("near_duplicates", unique["documents"], unique["kept"], duplicates=True),
        *([Cut("language", read, spoken)] if source in settings.language_of else []),
        Cut("educational", spoken, taught, share=_share(rule)),
        Cut("reasoning", taught, reasoned, share=settings.reasoning_share),
        Cut("domain", reasoned, chosen, share=settings.domain_share),
        Cut("deduplicated", chosen, counts.get("deduplicated", 0), duplicates=True),
    ]


def measured_costs(documents: Sequence[Document], models: Scorers, capabilities: Sequence[str]) -> list[Cost]:
    """Seconds of one processor thread and floating-point operations for a document, of each model of the cascade.

    Measured on the first documents of the pilot, after the model has seen a few of them.
    """
    some = list(documents)
    if not some:
        return []
    judge = models.judges[domain_prompt(capabilities)]
    timed: list[tuple[str, str, Callable[[list[Document]], Any], Any]] = [
        ("educational classifier", "educational", models.classifier.score, models.classifier),
        ("judge", "reasoning", models.judges["reasoning"].score, models.judges["reasoning"]),
        ("judge", "domain", judge.score, judge),
        ("embedder", "deduplicated", lambda found: models.embed([d.text for d in found]), None),
    ]
    costs = []
    for name, at, work, scorer in timed:
        work(some[:2])
        started = time.process_time()
        work(some)
        seconds = (time.process_time() - started) / len(some)
        costs.append(Cost(name, at, seconds, _flops(scorer, some)))
    return costs


def _flops(scorer: Any, documents: Sequence[Document]) -> float | None:
    """2 x parameters x tokens (four characters each, up to what the model reads); None if the weights are not local."""
    if scorer is None:
        return None
    folder = Path(getattr(scorer, "_folder", scorer.model))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
    if not size:
        return None
    most = getattr(scorer, "max_tokens", None) or scorer.max_document_tokens
    tokens = sum(min(len(document.text) / 4, most) for document in documents) / len(documents)
    return 2.0 * (size / 4) * tokens


def _sample(corpus: Corpus, ids: Sequence[str], dropped: set[str], size: int, seed: int) -> Corpus:
    chosen = pilot_sample([name for name in ids if name not in dropped], size, seed)
    return replace(corpus, only=pl.Series("id", chosen, dtype=pl.String))


def _first(corpus: Corpus) -> list[Document]:
    """The documents whose scoring is timed."""
    ids = corpus.only.head(TIMED_DOCUMENTS).to_list() if corpus.only is not None else []
    texts = corpus.texts(corpus.listing(), ids)
    return [Document(name, text, corpus.source) for name, text in zip(ids, texts, strict=True)]


def _share(rule: EducationalRule) -> float | None:
    """What a rule keeps by definition; None for a threshold."""
    return {"top": rule.value, "all": 1.0}.get(rule.kind)


def _funnel(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in read_json(folder / "funnel.json"):
        found.setdefault(row["source"], {})[row["stage"]] = row["documents"]
    return found


def group_sizes(dropped: pl.DataFrame, ids: pl.Series, documents: int) -> tuple[int, ...]:
    """Sizes of the groups of a source's documents that duplicate the same kept one, largest first.

    dropped : `dropped, kept_instead`, of any sources;  ids : all of the source
    documents : of the source that reached the cut; those in no group are groups of one

    >>> table = pl.DataFrame({"dropped": ["b", "c", "x"], "kept_instead": ["a", "y", "y"]})
    >>> group_sizes(table, pl.Series(["a", "b", "c", "d"]), 4)
    (2, 1, 1)
    """
    own = dropped.filter(pl.col("dropped").is_in(ids.implode()))
    groups = own.group_by("kept_instead").len()
    kept_here = groups["kept_instead"].is_in(ids.implode())
    sizes = (groups["len"] + kept_here.cast(pl.UInt32)).sort(descending=True).to_list()
    return (*sizes, *[1] * (documents - sum(sizes)))


def _available(run: Run, source: str, kind: str) -> tuple[int, bool]:
    """Training documents that a source is known to have, and whether it may have more than was looked at."""
    report = read_report(run.path("documents", source))
    share = 1 - run.recipe.probes.test_share
    return round((report.pieces - report.duplicates) * share), kind != "local"
