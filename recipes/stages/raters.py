"""The stage that trains small raters from the recipe's labels: classifier, judge and embedder."""

from __future__ import annotations

from typing import Any

from curation.atomic import write_json
from curation.documents import Document
from curation.embedding import train_lsa_embedder
from curation.judge_prompt import domain_prompt, load_prompt
from curation.labels import LabelledExample, LabelRule, balanced, label_counts, label_documents
from curation.raters import RaterSettings, train_classifier, train_judge
from curation.workers import Advance, Job, run_jobs
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.text import training_documents

CLASSIFIER_SCALE = 5.0


def prompt_names(recipe: Recipe) -> dict[str, str]:
    """The prompt of each purpose that the recipe's sources need: `reasoning`, capabilities, `combined`."""
    needed = {domain_prompt(source.capabilities) for source in recipe.sources}
    own = {str(purpose): name for purpose, name in recipe.curation.judge.prompts.items()}
    return {purpose: own.get(purpose, f"{purpose}-v1") for purpose in ["reasoning", *sorted(needed)]}


def prompt_hashes(recipe: Recipe) -> list[str]:
    """Of the prompts' texts: a file that was edited is another prompt."""
    return [load_prompt(name).sha256 for name in prompt_names(recipe).values()]


def _rules(recipe: Recipe, task: str) -> list[LabelRule]:
    return [
        LabelRule(
            name=rule.name,
            label=rule.label,
            why=rule.why,
            sources=tuple(rule.sources) if rule.sources is not None else None,
            pattern=rule.pattern,
            minimum_matches=rule.minimum_matches,
            corrupt=rule.corrupt,
        )
        for rule in getattr(recipe.curation.labels, task)
    ]


def _examples(run: Run, task: str) -> tuple[list[LabelledExample], list[dict[str, Any]]]:
    """Balanced labelled examples of a task, and how many each rule made."""
    recipe = run.recipe
    rules = _rules(recipe, task)
    highest = CLASSIFIER_SCALE if task == "educational" else 1.0
    documents: list[Document] = []
    for source in recipe.sources:
        documents += training_documents(run, source.name)
    labelled = label_documents(documents, rules, task=task, seed=recipe.seed, highest=highest)
    chosen = balanced(labelled, recipe.curation.raters.examples, seed=recipe.seed)
    return chosen, label_counts(chosen, rules)


def _rater_settings(recipe: Recipe, tasks: int = 1) -> RaterSettings:
    """Settings of a rater of `tasks` tasks; its limit on examples is on all tasks together."""
    raters = recipe.curation.raters
    return RaterSettings(
        examples=raters.examples * tasks,
        dim=raters.dim,
        layers=raters.layers,
        max_tokens=raters.context,
        epochs=raters.epochs,
        batch_examples=raters.batch,
        learning_rate=raters.learning_rate,
        seed=recipe.seed,
    )


def _train_educational(run: Run, advance: Advance) -> None:
    examples, counts = _examples(run, "educational")
    settings = _rater_settings(run.recipe)
    train_classifier(examples, run.path("tokenizer", "model"), run.path("raters", "educational"), settings)
    write_json(run.path("raters", "educational.labels.json"), {"educational": counts})


def _train_judge(run: Run, advance: Advance) -> None:
    names = prompt_names(run.recipe)
    labelled = {task: _examples(run, task) for task in names if getattr(run.recipe.curation.labels, task)}
    train_judge(
        {task: examples for task, (examples, _) in labelled.items()},
        {task: load_prompt(name) for task, name in names.items()},
        run.path("tokenizer", "model"),
        run.path("raters", "judge"),
        _rater_settings(run.recipe, len(labelled)),
    )
    write_json(
        run.path("raters", "judge.labels.json"), {task: counts for task, (_, counts) in labelled.items()}
    )


def _train_embedder(run: Run, advance: Advance) -> None:
    texts = [d.text for source in run.recipe.sources for d in training_documents(run, source.name)]
    out = run.path("raters", "embedder")
    if not (out / "modules.json").is_file():
        dimensions = run.recipe.curation.deduplication.dimensions
        train_lsa_embedder(texts, run.path("tokenizer", "model"), out, dim=dimensions, seed=run.recipe.seed)


def _raters(run: Run) -> Spent:
    curation = run.recipe.curation
    jobs = [
        Job(name, work, run)
        for name, work, model in (
            ("judge", _train_judge, curation.judge.model),
            ("classifier", _train_educational, curation.educational.model),
            ("embedder", _train_embedder, curation.deduplication.embedder),
        )
        if model == "trained"
    ]
    run_jobs(jobs, workers=run.workers, description="training raters", unit="raters")
    write_json(
        run.path("raters", "models.json"),
        {
            "educational": curation.educational.model,
            "judge": curation.judge.server.model if curation.judge.server else curation.judge.model,
            "embedder": curation.deduplication.embedder,
        },
    )
    return Spent(flops=_rater_cost(run.recipe).flops, tokens=_rater_cost(run.recipe).tokens)


def _rater_cost(recipe: Recipe) -> Spent:
    """Training tokens of the raters: every example of every task, every epoch, up to the context."""
    raters = recipe.curation.raters
    tasks = (recipe.curation.educational.model == "trained") + (
        len(prompt_names(recipe)) if recipe.curation.judge.model == "trained" else 0
    )
    tokens = tasks * raters.examples * raters.epochs * raters.context
    parameters = raters.layers * 8 * raters.dim**2 + raters.dim * recipe.tokenizer.vocabulary
    return Spent(flops=6.0 * parameters * tokens, tokens=tokens)


RATERS = Stage(
    name="raters",
    folder="raters",
    needs=("documents", "tokenizer"),
    settings=lambda recipe: [
        recipe.curation.raters.model_dump(),
        recipe.curation.labels.model_dump(),
        recipe.curation.educational.model,
        recipe.curation.judge.model,
        prompt_hashes(recipe) if recipe.curation.judge.model == "trained" else None,
        recipe.curation.deduplication.embedder,
        recipe.curation.deduplication.dimensions,
        recipe.probes.test_share,
        recipe.seed,
    ],
    outputs=("*.json", "*/*.json", "*/*.safetensors", "*/*/*.safetensors"),
    work=_raters,
    about="train classifier and judge from the labels",
    estimate=_rater_cost,
    parallel=True,
    fixed_seconds=25,
)
