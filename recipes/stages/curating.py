"""The stage that judges text: the cascade down to representative sets, with the models that the recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from curation.ask_llm import AskLLM
from curation.atomic import write_json
from curation.cascade import CascadeSettings, Scorers, select_representative
from curation.classifiers.folder import open_classifier
from curation.classifiers.language import LanguageRule, LanguageScorer, check_languages
from curation.educational import EducationalClassifier, parse_rule
from curation.embedding import embed
from curation.embedding_recheck import EmbeddingRecheck, embed_near
from curation.errors import RecipeError
from curation.judge_prompt import Prompt, load_prompt
from curation.judge_server import CHARACTERS_PER_TOKEN, ServerJudge
from curation.precision import Precision
from curation.scorer import Scorer
from curation.scoring.execution import Execution
from curation.scoring.runners import check_execution, open_runner
from curation.sizes import TokenCount
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.raters import prompt_hashes, prompt_names
from recipes.stages.text import training_corpus, training_documents

CARRIED_LOOK = 200
"""Documents of each source in which a carried score is looked for."""


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
        reuse=curation.educational.carried_score,
    )
    if curation.educational.carried_score is not None and not isinstance(classifier, EducationalClassifier):
        raise RecipeError(
            "`curation.educational.carried_score` goes with a classifier of transformers, not with fastText",
            where=curation.educational.model,
            remedy="Name the classifier that the corpora's scores are from, or leave `carried_score` out",
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
    embedder: str, precision: Precision | Literal["int8"], probes: int, texts: Sequence[str], threshold: float
) -> tuple[np.ndarray, EmbeddingRecheck | None]:
    return embed_near(texts, embedder, threshold, precision=precision, search={"probes": probes})


def execution_of(run: Run) -> Execution:
    """Where the recipe wants documents to be scored."""
    return run.recipe.executor.execution(run.workers)


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


def check_carried_scores(run: Run) -> None:
    """RecipeError when no source has the field that is said to hold scores: it is misspelt."""
    field = run.recipe.curation.educational.carried_score
    if field is None:
        return
    seen: set[str] = set()
    for source in run.recipe.sources:
        for document in islice(training_documents(run, source.name), CARRIED_LOOK):
            seen |= set(document.meta or {})
            if isinstance((document.meta or {}).get(field), int | float):
                return
    raise RecipeError(
        f"No document carries a number in the field `{field}`",
        where="curation.educational.carried_score",
        remedy=f"Name one of the fields that they have ({', '.join(sorted(seen)) or 'none'}), or leave it out",
    )


def check_surroundings(run: Run) -> None:
    """Raise now what would stop the run after hours: no Slurm on this machine, a server without its key, a path without
    a model, a language that the model does not know. Nothing is loaded or asked but the language model.
    """
    curation = run.recipe.curation
    check_execution(execution_of(run))
    if isinstance(judge := _judge(run, load_prompt(prompt_names(run.recipe)["reasoning"])), ServerJudge):
        judge.endpoint().check()
    _language_rules(run.recipe)
    for key, model in (
        ("educational.model", curation.educational.model),
        ("judge.model", curation.judge.model),
        ("deduplication.embedder", curation.deduplication.embedder),
    ):
        if model and _is_path(model) and not Path(model).exists():
            raise RecipeError(
                f"There is no model at {model}",
                where=f"curation.{key}",
                remedy="Check the path; it is relative to the recipe or to the folder where you are",
            )


def _is_path(model: str) -> bool:
    """Whether a model's name can only be a path: names on the hub have at most one slash, in their middle."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or model.endswith((".bin", "/"))


def _representative(run: Run) -> Spent:
    recipe = run.recipe
    check_carried_scores(run)
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


REPRESENTATIVE = Stage(
    name="representative",
    folder="representative",
    needs=("documents", "tokenizer", "near_duplicates", "raters"),
    settings=lambda recipe: [
        recipe.curation.model_dump(exclude={"raters", "labels", "near_duplicates"}),
        prompt_hashes(recipe),
        recipe.capabilities_of,
        recipe.probes.test_share,
        recipe.seed,
    ],
    outputs=("*.parquet", "*.json"),
    work=_representative,
    about="score, ask, deduplicate, choose",
    check=check_surroundings,
    fixed_seconds=40,
)
