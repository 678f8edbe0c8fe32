"""The settings that the papers leave open or state otherwise, with the value this run used, for the report."""

from __future__ import annotations

from recipes.schema import Recipe


def open_settings(recipe: Recipe) -> list[dict[str, str]]:
    """Rows `setting, value, paper, why`, in the order of the pipeline."""
    curation, influence, proxy = recipe.curation, recipe.influence, recipe.proxy
    judge = curation.judge
    rows = [
        (
            "educational cut",
            f"{curation.educational.rule}, model {curation.educational.model}",
            "FineWeb-Edu classifier, scores above 4",
            "The paper does not say whether the raw or the rounded score is meant; small corpora need a share.",
        ),
        (
            "judge of Ask-LLM",
            f"{judge.server.model if judge.server else judge.model}, {judge.context} tokens of each document",
            "model and prompts unpublished",
            "Prompts are versioned text files; a trained judge is as good as its labels, which are listed.",
        ),
        (
            "shares kept by the judge",
            f"{judge.reasoning_share:g}, then {judge.domain_share:g}",
            "0.1, then 0.1",
            "Ten per cent twice leaves nothing of a corpus of a few hundred documents.",
        ),
        (
            "semantic deduplication",
            f"embedder {curation.deduplication.embedder}, cosine {curation.deduplication.threshold:g}, "
            f"{curation.deduplication.rule}",
            "unpublished",
            "The earlier source in the recipe, then the higher score, is kept.",
        ),
        (
            "representative documents",
            f"{curation.representative_documents}",
            "about 10,000 for each source",
            "As many as the corpora of the run give.",
        ),
        (
            "probe documents",
            f"{recipe.probes.share:g} of a representative set, at most {recipe.probes.maximum_documents} for a source",
            "union of representative sets",
            "The paper probes with text that it also trains on; here probes are held out of all training.",
        ),
        (
            "checkpoints T",
            f"{influence.checkpoints}, weights by {influence.checkpoint_weights}",
            "10, proportional to the step",
            "Eq. 5.",
        ),
        (
            "preconditioner P",
            influence.preconditioner,
            "first-order approximation of H^-1, by reference to AutoMixer",
            "No code was published; Adam's second moments are those of the optimizer that trained the model.",
        ),
        (
            "influence protocol",
            influence.protocol,
            "mobilellm-r1",
            "The paper's own by its name; where it refers to AutoMixer, AutoMixer's choices as far as they are known.",
        ),
        (
            "influence reference",
            f"{', '.join(influence.references)}; choose {influence.choose}",
            "three domain models",
            "Domain models pay for text they never saw; a model of the uniform mixture is asked as well.",
        ),
        (
            "sign of influence",
            "benefit, positive lowers the probe loss",
            "Eq. 2 has the opposite sign from Eqs. 6 and 7",
            "One sign everywhere.",
        ),
        (
            "negative source sums",
            f"set to 0, floor {influence.floor:g} of uniform",
            "unstated; Eq. 6 has no weights then",
            "Clipped sources are named.",
        ),
        (
            "leave-one-out",
            f"{recipe.leave_one_out.reading} tokens, weights shrunk {recipe.leave_one_out.shrink:g} to uniform",
            "equal sampling, no repeats; no map to weights",
            "Differences say where to move, not how far.",
        ),
        (
            "proxy runs",
            f"{proxy.tokens:,} tokens, learning rate {proxy.learning_rate:g}, {proxy.precision}, averaged from "
            f"{proxy.average_from if proxy.average_from is not None else 'never'}",
            "2T tokens a phase, learning rate 4e-3",
            "Averaging steadies small runs.",
        ),
    ]
    for phase in recipe.final.phases:
        if phase.distill is not None:
            lesson = phase.distill
            rows.append(
                (
                    f"distillation in phase {phase.name}",
                    f"{lesson.alpha:g} x cross-entropy + {lesson.beta:g} x {lesson.direction} divergence from "
                    f"{lesson.teacher}, temperature {lesson.temperature:g}, cache {lesson.cache}",
                    "KL divergence from Llama-3.1-8B-Instruct in mid-training; direction and temperature unpublished",
                    "The forward KL at temperature 1 is the plainest reading.",
                )
            )
    if recipe.post_training.grpo is not None:
        grpo = recipe.post_training.grpo
        rows.append(
            (
                "GRPO",
                f"no KL, no division by the standard deviation, budget {grpo.thinking_tokens} + {grpo.answer_tokens} "
                f"tokens, length reward {'on' if grpo.length_reward else 'off'}",
                "LFM-1.3B-Math: normaliser and reward of wrong answers unpublished",
                "Constant normaliser (Dr. GRPO); a wrong answer earns -1; forced tokens carry no gradient.",
            )
        )
    return [dict(zip(("setting", "value", "paper", "why"), row, strict=True)) for row in rows]
