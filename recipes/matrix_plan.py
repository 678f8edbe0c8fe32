"""The plan of a matrix: pipelines of post-training from names on the command line, or from a YAML file.

A step is named by its kind, with changes behind dots: `sft`, `kd` (logit-level distillation on the chats), `sftkd`
(both losses in one), `seqkd` (SFT on the teacher's answers), `gkd` (on-policy), `rl`, and `rl.lead`, `rl.budget`,
`rl.filter`, `rl.lead.budget` and so on. `+` chains steps to a pipeline: `sft+rl`. A YAML file can name steps of its
own, which begin with the settings of a kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from curation.errors import RecipeError
from training.advantages import LeadSettings
from training.budgets import RolloutSettings
from training.distillation_settings import Distillation
from training.grpo_settings import GrpoSettings
from training.matrix import START, Measure, Pipeline
from training.matrix_steps import OnPolicyStep, RlStep, SftStep, Step, TeachStep
from training.on_policy_settings import OnPolicySettings
from training.sequence_distillation import TeachingSettings
from training.sft import SftSettings
from training.solve_rate import SolveRateSettings

KINDS = ("sft", "kd", "sftkd", "seqkd", "gkd", "rl")
CHANGES = ("lead", "budget", "filter")
Record = TypeVar("Record")


@dataclass(frozen=True)
class MatrixPlan:
    """What the steps of a matrix are made with.

    rollout       : how answers are sampled: in GRPO, on-policy distillation and by a teacher
    budget        : what takes its place in `rl.budget`; None where there is none
    teacher       : folder or hub name; None where no step asks one
    distillation  : changes of Distillation for kd, sftkd (alpha and beta 0.5 unless said) and gkd
    own           : steps by name, from a file
    """

    sft: SftSettings = field(default_factory=SftSettings)
    rl: GrpoSettings = field(default_factory=GrpoSettings)
    gkd: Mapping[str, Any] = field(default_factory=dict)
    teaching: TeachingSettings = field(default_factory=TeachingSettings)
    keep: SolveRateSettings = field(default_factory=SolveRateSettings)
    lead: LeadSettings = field(default_factory=LeadSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    budget: RolloutSettings | None = None
    teacher: str | None = None
    distillation: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def pipeline(self, text: str | Mapping[str, Any]) -> Pipeline:
        """The pipeline of `sft+rl.lead`, or of {"name", "steps": [...]}; `start` is the one without steps."""
        if isinstance(text, Mapping):
            if set(text) != {"name", "steps"} or not isinstance(text["steps"], list):
                raise RecipeError(
                    "A pipeline has a name and a list of steps",
                    where="matrix pipelines",
                    remedy="Write {name: two-stage, steps: [general, sft]}, or general+sft",
                )
            return Pipeline(str(text["name"]), tuple(self.step(str(name)) for name in text["steps"]))
        if text == START:
            return Pipeline(text, ())
        return Pipeline(text, tuple(self.step(name) for name in text.split("+")))

    def step(self, name: str) -> Step:
        """The step of a name; RecipeError when it means nothing."""
        if name in self.own:
            return self._own(name, dict(self.own[name]))
        kind, *changes = name.split(".")
        allowed = CHANGES if kind == "rl" else ()
        if kind not in KINDS or len(set(changes)) != len(changes) or not set(changes) <= set(allowed):
            raise RecipeError(
                f"`{name}` is no step",
                where="matrix pipelines",
                remedy=f"Choose of {', '.join(KINDS)}; rl takes {', '.join('.' + c for c in CHANGES)}",
            )
        if kind == "rl":
            return self._rl(name, changes)
        if kind == "sft":
            return SftStep(name, self.sft)
        if kind == "seqkd":
            teaching = replace(self.teaching, rollout=self.rollout)
            return TeachStep(name, self._teacher(name), teaching, self.sft)
        if kind == "gkd":
            return OnPolicyStep(name, self._on_policy(name))
        blend = {"alpha": 0.5, "beta": 0.5} if kind == "sftkd" else {}
        lesson = changed(Distillation(self._teacher(name)), {**blend, **self.distillation}, "distillation")
        return SftStep(name, replace(self.sft, distillation=lesson))

    def _rl(self, name: str, changes: Sequence[str]) -> RlStep:
        settings = replace(self.rl, rollout=self.rollout)
        if "lead" in changes:
            # Groups that are all right teach length, and only those; the mixed ones alone would hide it from them.
            objective = replace(settings.objective, lead=self.lead, group_filter="any_correct")
            settings = replace(settings, objective=objective)
        if "budget" in changes:
            if self.budget is None:
                raise RecipeError(
                    f"`{name}` has no budgets",
                    where="matrix",
                    remedy="Give thinking_tokens and answer_tokens",
                )
            settings = replace(settings, rollout=self.budget)
        keep = replace(self.keep, rollout=settings.rollout) if "filter" in changes else None
        return RlStep(name, settings, keep)

    def _on_policy(self, name: str) -> OnPolicySettings:
        wanted = {**self.distillation, "alpha": 0.0}
        lesson = changed(Distillation(self._teacher(name), direction="reverse"), wanted, "distillation")
        base = OnPolicySettings(
            lesson,
            steps=self.rl.steps,
            prompts_per_step=self.rl.prompts_per_step,
            learning_rate=self.sft.learning_rate,
            rollout=self.rollout,
        )
        return changed(base, self.gkd, "gkd")

    def _teacher(self, name: str) -> str:
        if self.teacher is None:
            raise RecipeError(f"The step `{name}` needs a teacher", where="matrix", remedy="Name one")
        return self.teacher

    def _own(self, name: str, said: dict[str, Any]) -> Step:
        """A step of the file: {"kind": a step's name, "data"?: file or files, settings of that kind ...}."""
        where = f"matrix step {name}"
        kind = str(said.pop("kind", ""))
        if kind in self.own or "kind" not in self.own[name]:
            raise RecipeError(
                "A step begins with a kind", where=where, remedy=f"Name one of {', '.join(KINDS)}"
            )
        base = self.step(kind)
        data = said.pop("data", None)
        if isinstance(base, SftStep):
            files = [data] if isinstance(data, str) else data or []
            return SftStep(name, changed(base.settings, said, where), tuple(Path(str(f)) for f in files))
        if data is not None:
            raise RecipeError("Only SFT reads data of its own", where=where, remedy="Leave data out")
        if isinstance(base, TeachStep):
            return replace(base, name=name, settings=changed(base.settings, said, where))
        if isinstance(base, OnPolicyStep):
            return OnPolicyStep(name, changed(base.settings, said, where))
        assert isinstance(base, RlStep)
        settings = changed(base.settings, said, where)
        return RlStep(name, settings, base.keep and replace(base.keep, rollout=settings.rollout))


def measures_of(said: Mapping[str, Any], where: str = "matrix measures") -> dict[str, Measure]:
    """Measures by name from {"name": {"samples"?: n, settings of RolloutSettings ...}}."""
    found = {}
    for name, values in said.items():
        if not isinstance(values, Mapping) or not str(name).replace("-", "").replace("_", "").isalnum():
            raise RecipeError(
                f"`{name}` is no measure", where=where, remedy="Write e.g. short: {max_tokens: 100}"
            )
        settings = dict(values)
        samples = settings.pop("samples", 1)
        if not isinstance(samples, int):
            raise RecipeError(f"samples is {samples!r}", where=f"{where}: {name}", remedy="Give a number")
        rollout = changed(RolloutSettings(temperature=0.0), settings, f"{where}: {name}")
        found[str(name)] = Measure(rollout, samples)
    return found


def changed(record: Record, changes: Mapping[str, Any], where: str) -> Record:
    """The settings with some changed, nested ones by mappings; RecipeError for an unknown name or a wrong type."""
    known = {each.name for each in fields(record)}  # type: ignore[arg-type]
    hints = get_type_hints(type(record))
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise RecipeError(
                f"There is no setting {name!r}", where=where, remedy=f"Choose of {', '.join(sorted(known))}"
            )
        now = getattr(record, name)
        if is_dataclass(now) and isinstance(value, Mapping):
            values[name] = changed(now, value, f"{where}.{name}")
            continue
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise RecipeError(
                f"{name} cannot be {value!r}: {error.errors()[0]['msg']}", where=where, remedy="Mend it"
            ) from None
    return replace(record, **values)  # type: ignore[type-var]
