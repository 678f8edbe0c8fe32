"""The stages that make the model: pre-training in phases, and the checked folder in the end."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

from curation.atomic import replacing, write_json
from curation.errors import DataError
from probes.capability import read_probes
from probes.in_run import probe_evaluation
from recipes.final_settings import FinalSettings
from recipes.pipeline import Run, Spent, Stage
from recipes.schema import Recipe
from recipes.stages.final_ranks import train_on_ranks
from recipes.stages.training_setup import model_config, one_thread, token_folders, total_steps, train_settings
from recipes.stages.weighing import mixture_named
from training.distillation_settings import Distillation
from training.huggingface import load_huggingface, save_huggingface
from training.lessons import cache_name, teaching_flops
from training.loop import TrainResult, TrainSettings, load_checkpoint_model, train
from training.order import DataOrder, MixtureSchedule, Phase
from training.schedules import RatePhase
from training.teacher import forward_flops, resolve_teacher
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

BLOCK = 64
LOGITS_TOLERANCE = 1e-4


def phase_schedule(run: Run) -> MixtureSchedule:
    """The phases of the final training with the mixtures this run found."""
    final = run.recipe.final
    sequences = total_steps(final, final.tokens) * final.batch_sequences
    weights = [mixture_named(run, phase.mixture).weights for phase in final.phases]
    lengths = phase_lengths(final, sequences)
    phases = zip(final.phases, lengths, weights, strict=True)
    return MixtureSchedule(tuple(Phase(p.name, n, w) for p, n, w in phases), seed=final.seed, block=BLOCK)


def phase_lengths(final: FinalSettings, total: int) -> list[int]:
    """The phases' parts of `total` sequences or steps, which they sum to."""
    shares = itertools.accumulate(phase.share for phase in final.phases)
    ends = [round(share * total) for share in shares][:-1] + [total]
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def rate_phases(final: FinalSettings) -> tuple[RatePhase, ...]:
    """The schedules of the phases; none when one schedule spans the whole run."""
    if not any(p.schedule or p.learning_rate or p.warmup_share is not None for p in final.phases):
        return ()
    steps = phase_lengths(final, total_steps(final, final.tokens))
    warmups = [final.warmup_share] + [0.0] * (len(steps) - 1)
    return tuple(
        RatePhase(
            count,
            phase.learning_rate or final.learning_rate,
            phase.schedule or final.schedule,
            min(count - 1, round(count * (warmup if phase.warmup_share is None else phase.warmup_share))),
        )
        for phase, count, warmup in zip(final.phases, steps, warmups, strict=True)
        if count
    )


def final_settings(final: FinalSettings) -> TrainSettings:
    """The trainer's settings for the final model."""
    settings = train_settings(final, final.tokens, final.seed, evaluations=final.evaluations)
    return replace(settings, rate_phases=rate_phases(final))


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


def train_final(run: Run) -> TrainResult:
    """Train the final model, alone or as one of the ranks of `recipes.stages.final_ranks`."""
    final = run.recipe.final
    order = data_order(run)
    order.check_epochs(final.max_epochs)
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    probes, sizes = read_probes(run.path("probes")), run.recipe.probes
    evaluate = probe_evaluation(probes, tokenizer, context=sizes.context, stride=sizes.stride)
    with one_thread():
        return train(
            model_config(run.recipe),
            order,
            replace(final_settings(final), distillation=distillation(run)),
            run.path("training", "pretrain"),
            evaluate=evaluate,
            progress_label="pre-training",
        )


def _pretrain(run: Run) -> Spent:
    result = train_on_ranks(run) if run.recipe.final.processes > 1 else train_final(run)
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    model = load_checkpoint_model(result.final)
    save_huggingface(model, run.path("training", "pretrain", "model"), tokenizer)
    lessons = distillation(run)
    order = data_order(run)
    taught = sum(teaching_flops(order, phase, each, order.sequences) for phase, each in lessons.items())
    return Spent(flops=result.flops + taught, tokens=result.tokens)


def base_model(run: Run) -> Path:
    """The model folder that post-training starts from: pre-training's, or mid-training's where there is any."""
    return run.path("training", "compression" if run.recipe.compression else "pretrain", "model")


def _model(run: Run) -> Spent:
    """Copy the last stage's folder to `model/`, and check its logits against transformers' own class."""
    post = run.recipe.post_training
    last = run.path("training", "grpo" if post.grpo else "sft", "model") if post.sft else base_model(run)
    difference = logits_difference(last)
    if difference > LOGITS_TOLERANCE:
        raise DataError(
            f"The exported model's logits differ from transformers' by {difference:.2g}",
            where=str(last),
            remedy="Report this with the versions in stage.json",
        )
    for file in sorted(last.iterdir()):
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


PRETRAIN = Stage(
    name="pretrain",
    folder="training/pretrain",
    needs=("recommendation", "mixtures", "tokens", "tokenizer", "probes"),
    settings=lambda recipe: [
        recipe.final.model_dump(exclude={"processes"}),  # may change between attempts
        recipe.model.model_dump(),
        recipe.tokenizer.vocabulary,
        recipe.probes.context,
        recipe.probes.stride,
    ],
    outputs=("model/*.safetensors", "model/*.json"),
    work=_pretrain,
    about="train the final model in phases",
    estimate=_final_estimate,
    fixed_seconds=5,
)


MODEL = Stage(
    name="model",
    folder="model",
    needs=("pretrain", "compression", "sft", "grpo"),
    settings=lambda recipe: [
        recipe.post_training.sft is not None,
        recipe.post_training.grpo is not None,
        *(["compression"] if recipe.compression else []),
    ],
    outputs=("*.safetensors", "*.json"),
    work=_model,
    about="check the folder against transformers",
    fixed_seconds=5,
)
