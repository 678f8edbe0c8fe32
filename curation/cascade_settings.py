"""What the cascade is told: its cuts, and the models that score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from curation.classifiers.language import LanguageRule, LanguageScorer
from curation.clusters import PROBES
from curation.deduplicate import Rule
from curation.educational import EducationalRule
from curation.embedding_recheck import EmbeddingRecheck
from curation.scorer import Scorer

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class CascadeSettings:
    """The cuts; the defaults are the paper's where it states them.

    educational  : rule for every source; `educational_of` has others for single sources
    language_of  : sources that are cut by language first, which needs `Scorers.language`
    reasoning_share, domain_share : parts of each source that the judge's two cuts keep
    threshold, rule, probes : semantic deduplication, see `semantic_duplicates`; unpublished
    documents    : size of each representative set
    top_up       : fill the places that duplicates left in a set with the next-ranked of the domain cut
    """

    educational: EducationalRule
    educational_of: Mapping[str, EducationalRule] = field(default_factory=dict)
    language_of: Mapping[str, LanguageRule] = field(default_factory=dict)
    reasoning_share: float = 0.1
    domain_share: float = 0.1
    threshold: float = 0.9
    rule: Rule = "greedy"
    probes: int = PROBES
    documents: int = 10_000
    top_up: bool = False


@dataclass(frozen=True)
class Scorers:
    """The models of the cascade: the classifier, and the judge with a prompt for each purpose.

    classifier : with a column `educational_score`: EducationalClassifier, or a classifier of one's own
    judges : by `reasoning`, the capabilities, and `combined` for sources with several capabilities or none
    embed  : texts to float32 [n, dim] with rows of length 1
    embed_near : texts and a threshold to embeddings, float32's wherever a cosine comes near the threshold, and what
        was measured (`embedding_recheck.embed_near`); in place of `embed` for the survivors, whose texts are then
        all in memory at once
    """

    classifier: Scorer
    judges: Mapping[str, Scorer]
    embed: Embed
    language: LanguageScorer | None = None
    embed_near: Callable[[Sequence[str], float], tuple[np.ndarray, EmbeddingRecheck | None]] | None = None
