"""The stages of a run, in order; each module holds those of one kind of work."""

from __future__ import annotations

from recipes.pipeline import Stage
from recipes.schema import Recipe
from recipes.stages.compressing import COMPRESSION
from recipes.stages.curating import REPRESENTATIVE
from recipes.stages.doremi import DOREMI
from recipes.stages.final import MODEL, PRETRAIN
from recipes.stages.front import FRONT, comparable_runs
from recipes.stages.near_duplicates import NEAR_DUPLICATES
from recipes.stages.post_training import GRPO, SFT
from recipes.stages.probing import PROBES, TEST, TOKENS
from recipes.stages.proxies import COMPARISON, DOMAIN_MODELS, LEAVE_ONE_OUT, PROXY_RUNS
from recipes.stages.raters import RATERS
from recipes.stages.text import DOCUMENTS, TOKENIZER
from recipes.stages.token_colours import TOKEN_BENEFITS
from recipes.stages.weighing import INFLUENCE, MIXTURES, RECOMMENDATION

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        DOCUMENTS,
        TOKENIZER,
        NEAR_DUPLICATES,
        RATERS,
        REPRESENTATIVE,
        PROBES,
        TEST,
        TOKENS,
        PROXY_RUNS,
        LEAVE_ONE_OUT,
        DOREMI,
        DOMAIN_MODELS,
        INFLUENCE,
        TOKEN_BENEFITS,
        MIXTURES,
        FRONT,
        COMPARISON,
        RECOMMENDATION,
        PRETRAIN,
        COMPRESSION,
        SFT,
        GRPO,
        MODEL,
    )
}


def stages_for(recipe: Recipe, goal: str | None = None) -> list[Stage]:
    """The stages of a recipe in order; with a goal, that stage and what it needs.

    Optional stages that the recipe turns off are left out.
    """
    absent = {name for name in ("sft", "grpo") if getattr(recipe.post_training, name) is None}
    if recipe.compression is None:
        absent.add("compression")
    if recipe.doremi is None and goal != "doremi":
        absent.add("doremi")
    if len(recipe.capabilities) < 2 or not comparable_runs(recipe):
        absent.add("front")
    if "domain_models" not in recipe.influence.references:
        absent.add("domain_models")
    wanted = set(STAGES) if goal is None else _needed(goal)
    return [stage for name, stage in STAGES.items() if name in wanted - absent]


def _needed(goal: str) -> set[str]:
    found: set[str] = set()
    waiting = [goal]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(STAGES[name].needs)
    return found
