"""The answer in plain sentences: what to use, whether it beat uniform, what helps what, what it cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixing.report.evidence import how_sure
from mixing.report.model import before_and_after
from mixing.report.numbers import (
    compact,
    decimals_for,
    duration,
    listed,
    percent,
    percent_span,
    plain,
    scientific,
    sentence,
    signed,
    signed_percent,
    words,
)
from mixing.report.recommended import recommended_name, same_weights, uniform
from mixing.report.records import Comparison, Difference, Effect, RunFacts

MEAN = "mean"


@dataclass(frozen=True)
class Verdict:
    """A short answer, a sentence that explains it, and its tone: "good", "bad", "unclear" or "none"."""

    short: str
    sentence: str
    tone: str


@dataclass(frozen=True)
class Answer:
    """A sentence, with what it is about before it."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class Point:
    """A question a reader has, with its answers."""

    question: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Summary:
    """The top of the page."""

    verdict: Verdict
    points: tuple[Point, ...]
    method: str = ""


def summarise(facts: RunFacts) -> Summary:
    """The top of the page."""
    verdict = against_uniform(facts)
    points = [
        Point("Which mixture?", _answers(which_mixture(facts))),
        Point("Did it beat uniform on held-out text?", _answers((verdict.sentence,))),
        Point("How sure are we?", _answers(sureness(facts))),
        Point("What does it rest on?", _answers(what_it_rests_on(facts))),
        Point("What helps what?", what_helps(facts)),
        Point("What became of the model?", _answers(the_model(facts))),
        Point("What did it cost?", _answers((what_it_cost(facts),))),
    ]
    reservations = what_to_doubt(facts)
    if reservations:
        points.append(Point("What to keep in mind", _answers(reservations)))
    return Summary(verdict, tuple(points), facts.recommended.method if facts.recommended else "")


def _answers(sentences: Iterable[str]) -> tuple[Answer, ...]:
    return tuple(Answer(sentence(text)) for text in sentences)


def which_mixture(facts: RunFacts) -> tuple[str, ...]:
    """The recommended weights in words."""
    mixture = facts.recommended
    if mixture is None:
        return ("This run has no recommended mixture yet: mixture.json is not there.",)
    order = sorted(mixture.weights, key=lambda s: (-mixture.weights[s], s))
    parts = [f"{percent(mixture.weights[s], 0)} {s}" for s in order if mixture.weights[s] >= 0.005]
    dropped = [s for s in order if mixture.weights[s] < 0.005]
    text = f"Of the training tokens, take {listed(parts, most=12)}."
    if dropped:
        text += f" Leave out {listed(dropped)} (below 0.5 %)."
    budget = (
        "" if mixture.budget_tokens is None else f" for a budget of {compact(mixture.budget_tokens)} tokens"
    )
    why = f" {facts.recommendation.why}" if facts.recommendation and facts.recommendation.why else ""
    return (text, f"Found by the method {mixture.method}{budget}.{why}")


def primary_difference(comparison: Comparison, mixture: str, against: str = "uniform") -> Difference | None:
    """The one number that was declared in advance: the mean over capabilities; the only capability if there is one."""
    rows = [d for d in comparison.differences if d.mixture == mixture and d.against == against]
    means = [d for d in rows if d.capability == MEAN]
    return means[0] if means else rows[0] if len(rows) == 1 else None


def against_uniform(facts: RunFacts) -> Verdict:
    """Whether the recommended mixture beat uniform on text that neither training nor the search has seen."""
    comparison = facts.comparison
    if comparison is None:
        return Verdict(
            "not compared", "Not known: no models were trained to compare it with uniform.", "none"
        )
    if facts.recommended is not None and same_weights(
        facts.recommended.weights, uniform(facts.recommended.weights)
    ):
        return Verdict("it is uniform", "The recommended mixture is the uniform mixture itself.", "unclear")
    name = recommended_name(facts)
    if name == "uniform":
        return Verdict("it is uniform", "The recommended mixture is the uniform mixture itself.", "unclear")
    if name is None:
        return Verdict(
            "not compared",
            "Not known: the recommended mixture is not among those that were trained for the comparison.",
            "none",
        )
    difference = primary_difference(comparison, name)
    if difference is None:
        return Verdict("not compared", f"Not known: {name} was not compared with uniform.", "none")
    return _verdict(comparison, difference)


def sureness(facts: RunFacts) -> tuple[str, ...]:
    """Probabilities from the proxy runs, how the prediction fared, and whether "not separable" means equal."""
    if facts.recommended is None:
        return ("There is no mixture to be sure of.",)
    found = [*how_sure(facts.recommended)]
    name = recommended_name(facts)
    row = primary_difference(facts.comparison, name) if facts.comparison and name else None
    gain = facts.recommended.evidence.gain_percent.get("uniform") if facts.recommended.evidence else None
    if facts.comparison is None or row is None:
        return tuple(found)
    relative, low, high, _ = relative_figures(facts.comparison, row)
    if gain is not None and relative is not None:
        predicted = f"{percent(gain.value / 100, 2)} ({percent_span(gain.low / 100, gain.high / 100, 2)})"
        realised = (
            f"Predicted was a loss lower by {predicted} than uniform's; on unseen text it was lower by "
        )
        realised += percent(-relative, 2)
        if low is not None and high is not None:
            realised += f" ({percent_span(-high, -low, 2)})"
        found.append(realised)
    if row.equivalent and row.margin is not None:
        base = facts.comparison.baseline(row.against, row.capability)
        within = f" within {percent(row.margin / base, 1)}" if base else ""
        found.append(
            f"In the comparison the difference to {row.against} is too small to matter: equal{within}, by "
            "two one-sided tests"
        )
    elif row.equivalent is False and row.verdict == "not separable":
        found.append(
            f"The comparison shows neither that it differs from {row.against} nor that it equals it; more "
            "seeds would tell"
        )
    return tuple(found)


def what_it_rests_on(facts: RunFacts) -> tuple[str, ...]:
    """The kinds of evidence in this run, with their sizes."""
    found = []
    evidence = facts.recommended.evidence if facts.recommended else None
    if evidence is not None and evidence.runs:
        found.append(f"{words(evidence.runs, 'proxy run')}, weighed by {evidence.basis}")
    loo = facts.leave_one_out
    if loo is not None and loo.effects:
        size = "" if loo.tokens_per_run is None else f" on {compact(loo.tokens_per_run)} tokens each"
        sources = len({e.source for e in loo.effects})
        clear = sum(e.clear for e in loo.effects)
        found.append(
            f"Leaving out each of {words(sources, 'source')} in turn{size}, "
            f"{words(len(loo.seeds), 'seed')}: {clear} of "
            f"{words(len(loo.effects), 'effect')} clear of noise"
        )
    if facts.influence is not None:
        found.append(f"Influence of documents at the reference {facts.influence.chosen}")
    if facts.comparison is not None:
        mixtures = len({r.mixture for r in facts.comparison.runs})
        found.append(
            f"A comparison of {words(mixtures, 'mixture')} trained with "
            f"{words(len(facts.comparison.seeds), 'seed')} each, on text "
            "that was held out from everything"
        )
    return tuple(found) or ("On nothing that this run has measured.",)


def relative_figures(
    comparison: Comparison, difference: Difference
) -> tuple[float | None, float | None, float | None, float | None]:
    """A difference, its interval and the smallest detectable effect as shares of the other mixture's bits per byte."""
    base = comparison.baseline(difference.against, difference.capability)
    if not base:
        return difference.relative, None, None, None

    def share(value: float | None) -> float | None:
        return None if value is None else value / base

    # All four over one base, so that the interval belongs to the figure (a mean of ratios would not be inside it).
    d = difference
    return share(d.difference), share(d.low), share(d.high), share(d.smallest_detectable)


def _verdict(comparison: Comparison, difference: Difference) -> Verdict:
    relative, low, high, detectable = relative_figures(comparison, difference)
    seeds = len(difference.per_seed) or len(comparison.seeds)
    what = "the mean over capabilities" if difference.capability == MEAN else difference.capability
    interval = f"{percent(comparison.level, 0)} interval {percent_span(low, high, 2, sign=True)}"
    how_sure = f"{what}, {words(seeds, 'paired seed')}, {interval}"
    where = "on held-out text that neither the training nor the search for the mixture has seen"
    if difference.verdict == "better":
        return Verdict(
            f"{percent(abs(relative or 0), 2)} fewer bits per byte than the uniform mixture",
            f"Yes: {where}, models trained on it need {percent(abs(relative or 0), 2)} fewer bits per byte than models "
            f"trained on the uniform mixture ({how_sure}).",
            "good",
        )
    if difference.verdict == "worse":
        return Verdict(
            f"{percent(abs(relative or 0), 2)} more bits per byte than the uniform mixture",
            f"No, it did worse: {where}, models trained on it need {percent(abs(relative or 0), 2)} more bits per byte "
            f"than models trained on the uniform mixture ({how_sure}). Prefer uniform.",
            "bad",
        )
    # The interval is that of one comparison; the verdict counts how many mixtures were tried.
    alone = (
        difference.low is not None
        and difference.high is not None
        and (difference.low > 0 or difference.high < 0)
    )
    corrected = ""
    if alone:
        p = "" if difference.p_corrected is None else f", p = {plain(difference.p_corrected, 2)}"
        corrected = f" once the number of mixtures that were compared is taken into account (Holm{p})"
    missed = (
        f"The smallest effect that this comparison would reliably find is {percent(detectable, 2)}"
        if detectable is not None
        else "How small an effect it could have found is not known"
    )
    return Verdict(
        "not separable from the uniform mixture at this budget",
        f"Not separable from noise at this budget{corrected}: {where}, the difference to the uniform mixture is "
        f"{signed_percent(relative, 2)} in bits per byte ({how_sure}; negative is better). {missed}.",
        "unclear",
    )


def what_helps(facts: RunFacts) -> tuple[Answer, ...]:
    """Per capability, the sources whose removal clearly hurts or helps; from influence when nothing was left out."""
    if facts.leave_one_out is not None and facts.leave_one_out.effects:
        effects = facts.leave_one_out.effects
        decimals = decimals_for([e.delta for e in effects], 2, least=3)
        return tuple(
            _helps(capability, [e for e in effects if e.capability == capability], decimals)
            for capability in facts.capability_names
            if any(e.capability == capability for e in effects)
        )
    influence = facts.influence
    reference = (
        next((r for r in influence.references if r.name == influence.chosen), None) if influence else None
    )
    if reference is None:
        return (Answer("Not known: neither leave-one-out nor influence was run."),)
    answers = []
    for capability in facts.capability_names:
        rows = sorted((b for b in reference.table if b.capability == capability), key=lambda b: -b.benefit)
        helps = [b.source for b in rows if b.low is not None and b.low > 0]
        hurts = [b.source for b in rows if b.high is not None and b.high < 0]
        answers.append(
            Answer(
                f"by influence, helped by {listed(helps) or 'no source clearly'}; "
                f"hurt by {listed(hurts) or 'no source clearly'}.",
                capability,
            )
        )
    return tuple(answers)


def _helps(capability: str, effects: list[Effect], decimals: int) -> Answer:
    ordered = sorted(effects, key=lambda e: -e.delta)

    def shown(rows: list[Effect]) -> str:
        parts = [
            f"{e.source} {signed(e.delta, decimals)} [{signed(e.low, decimals)}, {signed(e.high, decimals)}]"
            for e in rows
        ]
        return listed(parts, most=2)

    helps = shown([e for e in ordered if e.clear and e.delta > 0])
    hurts = shown([e for e in reversed(ordered) if e.clear and e.delta < 0])
    return Answer(
        f"{'helped by ' + helps if helps else 'no source clearly helps'}; "
        f"{'hurt by ' + hurts if hurts else 'no source clearly hurts'}.",
        capability,
    )


def the_model(facts: RunFacts) -> tuple[str, ...]:
    """Size of the final model, and accuracy before and after reinforcement learning."""
    answers = []
    if facts.model is not None:
        size = "" if facts.model.parameters is None else f" of {compact(facts.model.parameters)} parameters"
        state = "is complete" if not facts.model.problems else f"has problems: {listed(facts.model.problems)}"
        answers.append(f"A model{size} was trained; its Hugging Face folder model/ {state}.")
    grpo = facts.trained.get("grpo")
    if grpo is not None:
        answers += before_and_after(grpo.result)
    return tuple(answers) or ("No final model was trained.",)


def what_it_cost(facts: RunFacts) -> str:
    """Wall and CPU time, FLOPs and tokens of all stages, and the dearest of them."""
    done = [s for s in facts.stages if s.wall_seconds is not None]
    if not done:
        return "Not known: no stage recorded its cost."
    wall, cpu = sum(s.wall_seconds or 0 for s in done), sum(s.cpu_seconds or 0 for s in done)
    flops, tokens = sum(s.flops or 0 for s in done), sum(s.tokens or 0 for s in done)
    dearest = max(done, key=lambda s: s.wall_seconds or 0)
    text = f"{duration(wall)} of wall time ({duration(cpu)} of processor time) in {words(len(done), 'stage')}"
    if flops:
        text += f", {scientific(flops)} floating-point operations, {compact(tokens)} tokens through a model"
    share = (dearest.wall_seconds or 0) / wall if wall else None
    return f"{text}. The dearest stage was {dearest.name} ({percent(share, 0)})."


def what_to_doubt(facts: RunFacts) -> tuple[str, ...]:
    """What a careful reader would ask about."""
    doubts = list(facts.recommended.notes) if facts.recommended else []
    loo = facts.leave_one_out
    if loo is not None and len(loo.seeds) == 1 and not any("One seed" in d for d in doubts):
        doubts.append(
            "Leave-one-out was run with one training seed: its intervals cover the choice of probe documents, "
            "not what another seed would give."
        )
    broken = sum(r.counts.get("broken", 0) for r in facts.reads)
    if broken:
        doubts.append(
            f"{words(broken, 'record')} could not be read and {'was' if broken == 1 else 'were'} left out."
        )
    if facts.problems:
        doubts.append(f"{words(len(facts.problems), 'file')} of this run could not be read: see Reproduce.")
    unfinished = [s.name for s in facts.stages if s.status != "done"]
    if unfinished:
        doubts.append(f"Not finished: {listed(unfinished)}.")
    return tuple(dict.fromkeys(doubts))
