"""The stage that finds exact and MinHash duplicates across the sources, before anything is scored."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from curation.documents import Document
from curation.minhash import MinhashSettings
from curation.near_duplicates import NearDuplicateSettings, find_near_duplicates
from curation.scoring.runners import open_runner
from curation.splits import split_of
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe


@dataclass(frozen=True)
class InTraining:
    """Whether a document may be trained on: text that is set aside for the test displaces none."""

    seed: int
    test_share: float

    def __call__(self, document: Document) -> bool:
        shares = {"train": 1 - self.test_share, "test": self.test_share}
        return split_of(document, self.seed, shares) == "train"


def near_duplicate_settings(recipe: Recipe) -> NearDuplicateSettings:
    """The curation floor's record of the recipe's settings."""
    given = recipe.curation.near_duplicates
    minhash = MinhashSettings(given.similarity, given.words, given.buckets, given.hashes)
    return NearDuplicateSettings(
        exact=given.exact, fold_case=given.fold_case, minhash=minhash if given.minhash else None
    )


def _near_duplicates(run: Run) -> Spent:
    recipe = run.recipe
    counts = InTraining(recipe.seed, recipe.probes.test_share)
    execution = recipe.executor.execution(run.workers)
    elsewhere = open_runner(execution) if execution.kind != "local" else nullcontext()
    with elsewhere as runner:
        find_near_duplicates(
            {source.name: run.path("documents", source.name).resolve() for source in recipe.sources},
            run.path("near_duplicates").resolve(),
            near_duplicate_settings(recipe),
            counts=counts,
            counts_key=[counts.seed, counts.test_share],
            workers=run.workers,
            runner=runner,
        )
    return Spent()


NEAR_DUPLICATES = Stage(
    name="near_duplicates",
    folder="near_duplicates",
    needs=("documents",),
    settings=lambda recipe: [
        recipe.curation.near_duplicates.model_dump(),
        [source.name for source in recipe.sources],
        recipe.probes.test_share,
        recipe.seed,
    ],
    outputs=("near_duplicates.parquet", "report.json"),
    work=_near_duplicates,
    about="find equal and nearly equal texts",
    fixed_seconds=8,
)
