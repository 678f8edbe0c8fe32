"""The recipe: everything a run depends on, in one validated record."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recipes.curation_settings import CurationSettings, ProbeSettings, SourceSettings, TokenizerSettings
from recipes.executor_settings import ExecutorSettings
from recipes.final_settings import CompressionSettings, FinalSettings
from recipes.post_training_settings import PostTrainingSettings
from recipes.settings import Count, Name, Settings
from recipes.training_settings import (
    ComparisonSettings,
    DoremiSettings,
    InfluenceSettings,
    LeaveOneOutSettings,
    ModelSettings,
    ProxySettings,
)

RECIPE_VERSION = 1


class Recipe(Settings):
    """A whole run, from corpora to a model and a page that says why."""

    mixwright: Literal[1]
    """Version of the recipe format."""
    name: Name
    """Name of the run; its folder is runs/<name> unless --out says otherwise."""
    seed: int = 0
    """Seed of everything that has no seed of its own."""
    workers: Count | Literal["auto"] = "auto"
    """Processes that train side by side, one thread each; `auto` is the number of cores; results do not change."""
    executor: ExecutorSettings = ExecutorSettings()
    sources: list[SourceSettings] = Field(min_length=2)
    curation: CurationSettings
    tokenizer: TokenizerSettings = TokenizerSettings()
    probes: ProbeSettings = ProbeSettings()
    model: ModelSettings = ModelSettings()
    proxy: ProxySettings = ProxySettings()
    leave_one_out: LeaveOneOutSettings = LeaveOneOutSettings()
    doremi: DoremiSettings | None = None
    """DoReMi's two runs, of the proxies' size and length; none by default, `mixwright doremi` makes them anyway."""
    influence: InfluenceSettings = InfluenceSettings()
    comparison: ComparisonSettings = ComparisonSettings()
    final: FinalSettings = FinalSettings()
    compression: CompressionSettings | None = None
    """Mid-training between pre-training and post-training; none by default."""
    post_training: PostTrainingSettings = PostTrainingSettings()

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Capabilities that at least one source feeds, in the order code, mathematics, knowledge."""
        named = {capability for source in self.sources for capability in source.capabilities}
        return tuple(capability for capability in ("code", "mathematics", "knowledge") if capability in named)

    @property
    def capabilities_of(self) -> dict[str, tuple[str, ...]]:
        """Capabilities by source."""
        return {source.name: tuple(source.capabilities) for source in self.sources}

    @model_validator(mode="after")
    def _sources_are_usable(self) -> Recipe:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"two sources are named `{repeated[0]}`; give each a name of its own")
        if not self.capabilities:
            raise ValueError("no source has a capability, so there is nothing to probe; label at least one")
        known = set(names)
        for rules in (
            getattr(self.curation.labels, field) for field in type(self.curation.labels).model_fields
        ):
            for rule in rules:
                for source in rule.sources or ():
                    if source not in known:
                        raise ValueError(
                            f"label rule `{rule.name}` names the source `{source}`, which is not listed"
                        )
        for source in (self.compression and self.compression.sources) or ():
            if source not in known:
                raise ValueError(f"`compression.sources` names the source `{source}`, which is not listed")
        for source in self.curation.educational.per_source:
            if source not in known:
                raise ValueError(f"`educational.per_source` names the source `{source}`, which is not listed")
        for source in self.curation.language.per_source if self.curation.language else ():
            if source not in known:
                raise ValueError(f"`language.per_source` names the source `{source}`, which is not listed")
        return self

    @model_validator(mode="after")
    def _sequences_fit(self) -> Recipe:
        for block, tokens in (
            ("proxy", self.proxy.sequence_tokens),
            ("final", self.final.sequence_tokens),
            ("probes", self.probes.context),
            ("influence", self.influence.context),
            *([("compression", self.compression.sequence_tokens)] if self.compression else []),
        ):
            if tokens > self.model.max_positions:
                raise ValueError(
                    f"`{block}` reads {tokens} tokens at once, but `model.max_positions` is {self.model.max_positions}"
                )
        return self

    @model_validator(mode="after")
    def _moments_are_there(self) -> Recipe:
        if self.proxy.optimizer == "muon" and self.influence.preconditioner == "adam":
            raise ValueError(
                "`influence.preconditioner: adam` needs the second moments of the proxies' optimizer, and Muon keeps "
                "none; set `proxy.optimizer: adamw`, or another preconditioner"
            )
        return self
