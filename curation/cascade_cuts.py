"""The cuts by score: language, educational, Ask-LLM for reasoning, Ask-LLM for the domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import polars as pl

from curation.cascade_settings import CascadeSettings, Scorers
from curation.classifiers.language import none_passed, passing_language
from curation.educational import few_passed
from curation.judge_prompt import domain_prompt
from curation.judge_scores import judge_notes, judge_scores
from curation.recheck import decide
from curation.score_tables import top_share
from curation.scorer import Scorer
from curation.scoring.corpora import ScoredCorpora

Cuts = dict[str, pl.DataFrame]


def judged_cuts(
    scoring: ScoredCorpora,
    capabilities: Mapping[str, Sequence[str]],
    scorers: Scorers,
    settings: CascadeSettings,
    early: Mapping[str, pl.DataFrame],
    warnings: list[str],
) -> dict[str, Cuts]:
    """The survivors of each cut of each source, with the scores so far; those of `domain` are ranked.

    `asked` and `judged` hold all that reached the reasoning and the domain cut, ranked. One model after another
    goes over all sources, so that workers load it once.
    """
    found: dict[str, Cuts] = {}
    for source, listing in scoring.listings.items():
        read, before = listing.select("id"), early[source]
        exact = read.join(before.filter(kind="exact"), on="id", how="anti")
        minhash = exact.join(before, on="id", how="anti")
        found[source] = {"read": read, "exact": exact, "minhash": minhash}
    _languages(scoring, found, scorers, settings)
    scoring.ahead(scorers.classifier, {source: cuts["language"] for source, cuts in found.items()})
    for source in found:
        rated = scoring.table(scorers.classifier, source, found[source]["language"])
        rule = settings.educational_of.get(source, settings.educational)
        decision = decide(
            rated, rule, scorers.classifier, scoring.scores / source, partial(scoring.table_of, source)
        )
        rated, taught = decision.scores.select("id", "educational_score"), decision.passing
        if decision.recheck is not None:
            warnings.append(decision.recheck.sentence(source))
        if warning := few_passed(source, taught.height, rated.height, rule):
            warnings.append(warning)
        found[source] |= {"rated": rated, "educational": taught}
    judge, share = scorers.judges["reasoning"], settings.reasoning_share
    scoring.ahead(judge, {source: cuts["educational"] for source, cuts in found.items()})
    for source, cuts in found.items():
        cuts["asked"] = _asked(scoring, source, cuts["educational"], judge, "reasoning", share, warnings)
        cuts["reasoning"] = top_share(cuts["asked"], "reasoning_margin", settings.reasoning_share)
    prompts = {source: domain_prompt(capabilities.get(source, ())) for source in found}
    for prompt in sorted(set(prompts.values())):
        asked = {source: cuts["reasoning"] for source, cuts in found.items() if prompts[source] == prompt}
        scoring.ahead(scorers.judges[prompt], asked)
    for source in sorted(found, key=prompts.__getitem__):
        judge, cuts = scorers.judges[prompts[source]], found[source]
        share = settings.domain_share
        cuts["judged"] = _asked(scoring, source, cuts["reasoning"], judge, "domain", share, warnings)
        cuts["domain"] = top_share(cuts["judged"], "domain_margin", settings.domain_share)
    return found


def _languages(
    scoring: ScoredCorpora, found: dict[str, Cuts], scorers: Scorers, settings: CascadeSettings
) -> None:
    """Adds `language`, the documents that pass the source's rule, and `spoken`, the scores; all of them where there is
    no rule.
    """
    rules = {} if scorers.language is None else settings.language_of
    if scorers.language is not None:
        scoring.ahead(scorers.language, {s: cuts["minhash"] for s, cuts in found.items() if s in rules})
    for source, cuts in found.items():
        rule = rules.get(source)
        if rule is None or scorers.language is None:
            cuts["language"] = cuts["minhash"]
            continue
        spoken = scoring.table(scorers.language, source, cuts["minhash"])
        passed = passing_language(spoken, rule)
        if spoken.height and not passed.height:
            raise none_passed(source, spoken, rule)
        cuts |= {"spoken": spoken, "language": passed.select("id")}


def _asked(
    scoring: ScoredCorpora,
    source: str,
    table: pl.DataFrame,
    judge: Scorer,
    name: str,
    share: float,
    warnings: list[str],
) -> pl.DataFrame:
    """`table` ranked, with the judge's margin and calibrated probability as `<name>_margin` and `<name>_p`."""
    scores = judge_scores(judge, table, share, partial(scoring.table_of, source))
    warnings += judge_notes(source, scores, judge)
    wanted = scores.select(
        "id", pl.col("margin").alias(f"{name}_margin"), pl.col("p1_calibrated").alias(f"{name}_p")
    )
    return top_share(table.join(wanted, on="id", how="inner"), f"{name}_margin", 1.0)
