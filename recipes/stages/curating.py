"""The stages that judge text: training the raters, and the cascade down to representative sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from curation.ask_llm import AskLLM
from curation.atomic import write_json
from curation.cascade import CascadeSettings, Scorers, domain_prompt, select_representative
from curation.classifiers.folder import open_classifier
from curation.classifiers.language import LanguageRule, LanguageScorer, check_languages
from curation.documents import Document
from curation.educational import parse_rule
from curation.embedding import embed, train_lsa_embedder
from curation.embedding_recheck import EmbeddingRecheck, embed_near
from curation.judge_prompt import Prompt, load_prompt
from curation.judge_server import CHARACTERS_PER_TOKEN, ServerJudge
from curation.labels import LabelledExample, LabelRule, balanced, label_counts, label_documents
from curation.precision import Precision
from curation.raters import RaterSettings, train_classifier, train_judge
from curation.scorer import Scorer
from curation.scoring.execution import Execution
from curation.scoring.runners import open_runner
from curation.sizes import TokenCount
from curation.workers import Advance, Job, run_jobs
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.text import training_corpus, training_documents

CLASSIFIER_SCALE = 5.0


def prompt_names(recipe: Recipe) -> dict[str, str]:
    """The prompt of each purpose that the recipe's sources need: `reasoning`, capabilities, `combined`."""
    needed = {domain_prompt(source.capabilities) for source in recipe.sources}
    own = {str(purpose): name for purpose, name in recipe.curation.judge.prompts.items()}
    return {purpose: own.get(purpose, f"{purpose}-v1") for purpose in ["reasoning", *sorted(needed)]}


def _prompt_hashes(recipe: Recipe) -> list[str]:
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


def _model(run: Run, named: str, rater: str) -> str:
    return str(run.path("raters", rater)) if named == "trained" else named


def scorers(run: Run) -> Scorers:
    """The models of the cascade that the recipe names, or that the run has trained."""
    curation = run.recipe.curation
    judges = {purpose: _judge(run, load_prompt(name)) for purpose, name in prompt_names(run.recipe).items()}
    classifier = open_classifier(
        _model(run, curation.educational.model, "educational"),
        max_tokens=curation.raters.context if curation.educational.model == "trained" else 512,
        precision=curation.educational.precision,
    )
    embedder = _model(run, curation.deduplication.embedder, "embedder")
    language = LanguageScorer(curation.language.model) if curation.language else None
    precision = curation.deduplication.precision
    near = (
        None
        if precision == "float32"
        else partial(_embed_near, embedder, precision, curation.deduplication.probes)
    )
    return Scorers(classifier, judges, partial(_embed, embedder), language, near)


def _judge(run: Run, prompt: Prompt) -> Scorer:
    curation, judge = run.recipe.curation, run.recipe.curation.judge
    if judge.server is not None:
        server = judge.server
        return ServerJudge(
            server.url,
            server.model,
            prompt,
            api=server.api,
            key_variable=server.key_variable,
            concurrency=-(-server.concurrency // run.workers),
            max_document_characters=judge.context * CHARACTERS_PER_TOKEN,
            top_logprobs=server.top_logprobs,
            system_fingerprint=server.system_fingerprint,
            timeout=server.timeout_seconds,
            retries=server.retries,
        )
    trained = judge.model == "trained"
    return AskLLM(
        _model(run, str(judge.model), "judge"),
        prompt,
        max_document_tokens=min(judge.context, curation.raters.context) if trained else judge.context,
        precision=judge.precision,
    )


def _language_rules(recipe: Recipe) -> dict[str, LanguageRule]:
    """The rule of each source that is cut by language; RecipeError for a language that the model does not know."""
    language = recipe.curation.language
    if language is None:
        return {}
    wanted = {
        source.name: language.per_source.get(source.name, language.languages) for source in recipe.sources
    }
    rules = {
        source: LanguageRule(tuple(names), language.minimum_probability)
        for source, names in wanted.items()
        if names
    }
    for rule in rules.values():
        check_languages(language.model, rule)
    return rules


def _embed(embedder: str, texts: Any) -> Any:
    return embed(texts, embedder)


def _embed_near(
    embedder: str, precision: Precision, probes: int, texts: Sequence[str], threshold: float
) -> tuple[np.ndarray, EmbeddingRecheck | None]:
    return embed_near(texts, embedder, threshold, precision=precision, search={"probes": probes})


def execution_of(run: Run) -> Execution:
    """Where the recipe wants documents to be scored."""
    settings = run.recipe.executor.model_dump()
    return Execution(**settings | {"workers": settings["workers"] or run.workers})


def cascade_settings(recipe: Recipe) -> CascadeSettings:
    """The curation floor's record of the recipe's cuts."""
    curation = recipe.curation
    return CascadeSettings(
        educational=parse_rule(curation.educational.rule),
        educational_of={name: parse_rule(rule) for name, rule in curation.educational.per_source.items()},
        language_of=_language_rules(recipe),
        reasoning_share=curation.judge.reasoning_share,
        domain_share=curation.judge.domain_share,
        threshold=curation.deduplication.threshold,
        rule=curation.deduplication.rule,
        probes=curation.deduplication.probes,
        documents=curation.representative_documents,
    )


def _representative(run: Run) -> Spent:
    recipe = run.recipe
    corpora = {source.name: training_corpus(run, source.name) for source in recipe.sources}
    settings = cascade_settings(recipe)
    with open_runner(execution_of(run)) as runner:
        warnings = select_representative(
            corpora,
            recipe.capabilities_of,
            scorers(run),
            settings,
            scores=run.path("scores"),
            out=run.path("representative"),
            runner=runner,
            already_dropped=pl.read_parquet(run.path("near_duplicates", "near_duplicates.parquet")),
            size=TokenCount(str(run.path("tokenizer", "model"))),
        )
    write_json(run.path("representative", "warnings.json"), warnings)
    return Spent()


RATERS = Stage(
    name="raters",
    folder="raters",
    needs=("documents", "tokenizer"),
    settings=lambda recipe: [
        recipe.curation.raters.model_dump(),
        recipe.curation.labels.model_dump(),
        recipe.curation.educational.model,
        recipe.curation.judge.model,
        _prompt_hashes(recipe) if recipe.curation.judge.model == "trained" else None,
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

REPRESENTATIVE = Stage(
    name="representative",
    folder="representative",
    needs=("documents", "tokenizer", "near_duplicates", "raters"),
    settings=lambda recipe: [
        recipe.curation.model_dump(exclude={"raters", "labels", "near_duplicates"}),
        _prompt_hashes(recipe),
        recipe.capabilities_of,
        recipe.probes.test_share,
        recipe.seed,
    ],
    outputs=("*.parquet", "*.json"),
    work=_representative,
    about="score, ask, deduplicate, choose",
    fixed_seconds=40,
)
