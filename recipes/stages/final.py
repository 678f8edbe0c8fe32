"""The stages that make the model: pre-training in phases, fine-tuning, reinforcement learning, the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from curation.atomic import replacing, write_json
from curation.errors import DataError
from curation.word_problems import simple_sum, word_problem
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.training_setup import model_config, one_thread, token_folders, total_steps, train_settings
from recipes.stages.weighing import mixture_named
from recipes.training_settings import FinalSettings
from training.advantages import LeadSettings
from training.distillation_settings import Distillation
from training.grpo import GrpoSettings, grpo
from training.grpo_step import ObjectiveSettings
from training.huggingface import load_huggingface, save_huggingface
from training.lessons import cache_name, teaching_flops
from training.loop import load_checkpoint_model, train
from training.order import DataOrder, MixtureSchedule, Phase
from training.rollout import RolloutSettings
from training.sft import SftSettings, sft
from training.teacher import forward_flops, resolve_teacher
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

BLOCK = 64
LOGITS_TOLERANCE = 1e-4
SUMS = {"largest": 9, "steps": 1}
"""Size of the generated arithmetic: small enough for a model of a million parameters to get some of it right."""
SUMS_SHARE = 19
"""Of twenty generated chats, so many are sums; the other is a word problem of the kind it was pre-trained on."""


def phase_schedule(run: Run) -> MixtureSchedule:
    """The phases of the final training with the mixtures this run found."""
    final = run.recipe.final
    sequences = total_steps(final, final.tokens) * final.batch_sequences
    phases, begun, share = [], 0, 0.0
    for phase in final.phases:
        share += phase.share
        until = sequences if phase is final.phases[-1] else round(share * sequences)
        phases.append(Phase(phase.name, until - begun, mixture_named(run, phase.mixture).weights))
        begun = until
    return MixtureSchedule(tuple(phases), seed=final.seed, block=BLOCK)


def data_order(run: Run) -> DataOrder:
    """Which tokens the final training reads at each index: a pure function of the run's files and the seed."""
    sources = {name: TokenSource.open(folder) for name, folder in token_folders(run).items()}
    return DataOrder(phase_schedule(run), sources, run.recipe.final.sequence_tokens)


def distillation(run: Run) -> dict[str, Distillation]:
    """The teachers of the final training's phases.

    Their caches lie outside the stage's folder, which is emptied when its settings change: what a teacher said
    about a document is not asked again.
    """
    final, found = run.recipe.final, {}
    for phase in final.phases:
        if phase.distill is not None:
            settings = Distillation(
                **phase.distill.model_dump(),
                tokenizer=str(run.path("tokenizer", "model")),
                seed=final.seed,
            )
            if settings.cache != "none":
                name = cache_name(settings, final.sequence_tokens, model_config(run.recipe).vocab_size)
                settings = replace(settings, cache_folder=str(run.path("teacher_cache", name)))
            found[phase.name] = settings
    return found


def _pretrain(run: Run) -> Spent:
    final = run.recipe.final
    order = data_order(run)
    lessons = distillation(run)
    with one_thread():
        result = train(
            model_config(run.recipe),
            order,
            replace(train_settings(final, final.tokens, final.seed), distillation=lessons),
            run.path("training", "pretrain"),
            progress_label="pre-training",
        )
    model = load_checkpoint_model(result.final)
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    save_huggingface(model, run.path("training", "pretrain", "model"), tokenizer)
    taught = sum(teaching_flops(order, phase, each, order.sequences) for phase, each in lessons.items())
    return Spent(flops=result.flops + taught, tokens=result.tokens)


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
    )
    with one_thread():
        result = sft(run.path("training", "pretrain", "model"), data, folder, chosen)
    tokens = result.steps * settings.sequence_tokens * settings.batch_sequences
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


def _model(run: Run) -> Spent:
    """Copy the last stage's folder to `model/`, and check its logits against transformers' own class."""
    post = run.recipe.post_training
    last = "grpo" if post.grpo else "sft" if post.sft else "pretrain"
    difference = logits_difference(run.path("training", last, "model"))
    if difference > LOGITS_TOLERANCE:
        raise DataError(
            f"The exported model's logits differ from transformers' by {difference:.2g}",
            where=str(run.path("training", last, "model")),
            remedy="Report this with the versions in stage.json",
        )
    for file in sorted(run.path("training", last, "model").iterdir()):
        with replacing(run.path("model", file.name)) as temporary:
            shutil.copyfile(file, temporary)
    write_json(
        run.path("model", "check.json"),
        {"largest_logit_difference": difference, "tolerance": LOGITS_TOLERANCE},
    )
    return Spent()


def logits_difference(folder: Path) -> float:
    """Largest difference between our logits and transformers' for a model folder, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    ours = load_huggingface(folder).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, ours.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((ours.logits(ours(tokens)) - theirs(tokens).logits).abs().max())


def _final_estimate(recipe: Recipe) -> Spent:
    """Training, and the teachers' forward passes; of a cached teacher the phase's tokens, read once or less."""
    final: FinalSettings = recipe.final
    tokens = total_steps(final, final.tokens) * final.sequence_tokens * final.batch_sequences
    flops = tokens * model_config(recipe).flops_per_token(final.sequence_tokens)
    for phase in final.phases:
        if phase.distill is not None:
            context = phase.distill.context if phase.distill.cache != "none" else None
            flops += (
                phase.share
                * tokens
                * forward_flops(resolve_teacher(phase.distill.teacher), context or final.sequence_tokens)
            )
    return Spent(flops=flops, tokens=tokens)


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


PRETRAIN = Stage(
    name="pretrain",
    folder="training/pretrain",
    needs=("recommendation", "mixtures", "tokens", "tokenizer"),
    settings=lambda recipe: [
        recipe.final.model_dump(),
        recipe.model.model_dump(),
        recipe.tokenizer.vocabulary,
    ],
    outputs=("model/*.safetensors", "model/*.json"),
    work=_pretrain,
    about="train the final model in phases",
    estimate=_final_estimate,
    fixed_seconds=5,
)

SFT = Stage(
    name="sft",
    folder="training/sft",
    needs=("pretrain",),
    settings=lambda recipe: [
        recipe.post_training.sft.model_dump() if recipe.post_training.sft else None,
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

MODEL = Stage(
    name="model",
    folder="model",
    needs=("pretrain", "sft", "grpo"),
    settings=lambda recipe: [recipe.post_training.sft is not None, recipe.post_training.grpo is not None],
    outputs=("*.safetensors", "*.json"),
    work=_model,
    about="check the folder against transformers",
    fixed_seconds=5,
)
