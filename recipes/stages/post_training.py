"""The stages after pre-training: fine-tuning on chats with worked thoughts, and reinforcement learning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from curation.atomic import replacing, write_json
from curation.word_problems import simple_sum, word_problem
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.final import base_model
from recipes.stages.training_setup import model_config, one_thread
from training.advantages import LeadSettings
from training.grpo import GrpoSettings, grpo
from training.grpo_step import ObjectiveSettings
from training.rollout import RolloutSettings
from training.sft import SftResult, SftSettings, sft
from training.sft_stages import SftStage, sft_stages
from training.shortening import Shortening, shorten_file
from training.tokenizer import load_tokenizer

SUMS = {"largest": 9, "steps": 1}
"""Size of the generated arithmetic: small enough for a model of a million parameters to get some of it right."""
SUMS_SHARE = 19
"""Of twenty generated chats, so many are sums; the other is a word problem of the kind it was pre-trained on."""


def held_out_sums(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different problems for measuring; generated training data leaves their questions out."""
    problems: dict[str, dict[str, Any]] = {}
    index = 0
    while len(problems) < count:
        chat = simple_sum(seed + 1_000_003, index, **SUMS).as_chat()
        problems.setdefault(chat["prompt"], chat)
        index += 1
    return list(problems.values())


def generated_chats(count: int, seed: int, forbidden: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Chats with worked thoughts, `SUMS_SHARE` sums to a word problem, without the forbidden questions."""
    left_out, made, index = set(forbidden), 0, 0
    while made < count:
        sum_turn = index % (SUMS_SHARE + 1) < SUMS_SHARE
        problem = simple_sum(seed, index, **SUMS) if sum_turn else word_problem(seed, index)
        index += 1
        chat = problem.as_chat()
        if chat["prompt"] not in left_out:
            made += 1
            yield chat


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSON lines, atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _held_out(recipe: Recipe) -> list[dict[str, Any]]:
    grpo_settings = recipe.post_training.grpo
    return held_out_sums(grpo_settings.held_out, grpo_settings.seed) if grpo_settings else []


def _sft(run: Run) -> Spent:
    settings = run.recipe.post_training.sft
    if settings is None:
        return Spent()
    folder = run.path("training", "sft")
    data = Path(settings.data)
    if settings.data == "generated":
        data = folder / "chats.jsonl"
        forbidden = [row["prompt"] for row in _held_out(run.recipe)]
        write_rows(data, generated_chats(settings.examples, settings.seed, forbidden))
    chosen = SftSettings(
        sequence_tokens=settings.sequence_tokens,
        batch_sequences=settings.batch_sequences,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_share=settings.warmup_share,
        precision=run.recipe.final.precision,
        seed=settings.seed,
        recompute_every=1 if settings.recompute else None,
    )
    start = base_model(run)
    if settings.shorten:
        how = Shortening(**settings.shorten.model_dump())
        report = shorten_file(data, folder / "shortened.jsonl", load_tokenizer(start), how)
        write_json(folder / "shortened.json", asdict(report))
        data = folder / "shortened.jsonl"
    with one_thread():
        if settings.general is None:
            results: tuple[SftResult, ...] = (sft(start, data, folder, chosen),)
        else:
            general = settings.general
            first = replace(
                chosen,
                epochs=general.epochs,
                learning_rate=general.learning_rate,
                warmup_share=general.warmup_share,
            )
            stages = [SftStage("general", general.data, first), SftStage("reasoning", data, chosen)]
            results = sft_stages(start, stages, folder, general.schedule)
    steps = sum(result.steps for result in results)
    tokens = steps * settings.sequence_tokens * settings.batch_sequences
    return Spent(
        flops=model_config(run.recipe).flops_per_token(settings.sequence_tokens) * tokens, tokens=tokens
    )


def _grpo(run: Run) -> Spent:
    settings = run.recipe.post_training.grpo
    if settings is None:
        return Spent()
    folder = run.path("training", "grpo")
    prompts, held_out = Path(settings.data), None
    if settings.data == "generated":
        prompts, held_out = folder / "prompts.jsonl", folder / "held_out.jsonl"
        tests = _held_out(run.recipe)
        forbidden = {row["prompt"] for row in tests}
        wanted = settings.steps * settings.prompts_per_step
        sums = (simple_sum(settings.seed, index, **SUMS).as_chat() for index in range(20 * wanted))
        questions = {chat["prompt"]: chat for chat in sums if chat["prompt"] not in forbidden}
        write_rows(prompts, list(questions.values())[:wanted])
        write_rows(held_out, tests)
    chosen = GrpoSettings(
        steps=settings.steps,
        prompts_per_step=settings.prompts_per_step,
        replicas=settings.group,
        rollout=RolloutSettings(
            temperature=settings.temperature,
            thinking_tokens=settings.thinking_tokens,
            answer_tokens=settings.answer_tokens,
        ),
        objective=ObjectiveSettings(lead=LeadSettings() if settings.length_reward else None),
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    with one_thread():
        grpo(run.path("training", "sft", "model"), prompts, "math", folder, chosen, held_out=held_out)
    return _grpo_cost(run.recipe)


def _sft_estimate(recipe: Recipe) -> Spent:
    settings = recipe.post_training.sft
    if settings is None or settings.data != "generated":
        return Spent()
    tokens = settings.epochs * settings.examples * 60
    return Spent(flops=tokens * model_config(recipe).flops_per_token(settings.sequence_tokens), tokens=tokens)


def _grpo_cost(recipe: Recipe) -> Spent:
    """Each sampled token is one forward pass and one pass of training."""
    settings = recipe.post_training.grpo
    if settings is None:
        return Spent()
    length = settings.thinking_tokens + settings.answer_tokens
    tokens = settings.steps * settings.prompts_per_step * settings.group * length
    return Spent(flops=tokens * model_config(recipe).flops_per_token(length) * 4 / 3, tokens=tokens)


SFT = Stage(
    name="sft",
    folder="training/sft",
    needs=("pretrain", "compression"),
    settings=lambda recipe: [
        recipe.post_training.sft.deciding() if recipe.post_training.sft else None,
        recipe.final.precision,
        [row["prompt"] for row in _held_out(recipe)],
    ],
    outputs=("model/*.safetensors", "model/*.json"),
    work=_sft,
    about="fine-tune on chats with worked thoughts",
    estimate=_sft_estimate,
    fixed_seconds=6,
)

GRPO = Stage(
    name="grpo",
    folder="training/grpo",
    needs=("sft",),
    settings=lambda recipe: recipe.post_training.grpo.model_dump() if recipe.post_training.grpo else None,
    outputs=("model/*.safetensors", "model/*.json", "result.json"),
    work=_grpo,
    about="reward right and short answers",
    estimate=_grpo_cost,
    fixed_seconds=10,
)
