"""Fine-tuning on several data sets: one after the other, each with settings of its own, or all together.

MobileLLM-R1 (arXiv 2509.24945, table 8) fine-tunes on general chats first and on reasoning afterwards, and its
section 7 compares that with one joint run over both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from curation.atomic import replacing_folder
from curation.errors import RecipeError
from training.distributed import join_ranks
from training.sft import SftResult, SftSettings, sft

StageSchedule = Literal["in_turn", "joint"]

GENERAL = SftSettings(
    sequence_tokens=4096,
    batch_sequences=512,
    micro_batch_sequences=4,
    epochs=2,
    learning_rate=5e-6,
    warmup_share=0.03,
)
"""MobileLLM-R1's first stage (Tulu 3): its batch of 4 on each of 128 GPUs."""
REASONING = SftSettings(
    sequence_tokens=32768, batch_sequences=1024, micro_batch_sequences=1, epochs=4, learning_rate=8e-5,
    warmup_share=0.1, recompute_every=1,
)  # fmt: skip
"""Its second stage: 8 on each of 128 GPUs, with activations recomputed."""
LFM = SftSettings(
    sequence_tokens=32768, micro_batch_sequences=1, epochs=3, learning_rate=3e-4, recompute_every=1
)
"""LFM-1.3B-Math's fine-tuning; its batch size is unpublished, so this one is ours."""
PRESETS = {"mobilellm-r1-general": GENERAL, "mobilellm-r1-reasoning": REASONING, "lfm": LFM}


@dataclass(frozen=True)
class SftStage:
    """One data set, a file or several read as one, and how to train on it."""

    name: str
    data: Path | str | Sequence[Path | str]
    settings: SftSettings


def sft_stages(
    start: Path | str,
    stages: Sequence[SftStage],
    out: Path | str,
    schedule: StageSchedule = "in_turn",
    *,
    tokenizer: Any = None,
    generation: dict[str, Any] | None = None,
) -> tuple[SftResult, ...]:
    """Fine-tune the model of `start`; the last model is `out/model`, and each stage's run is `out/<name>`.

    "in_turn" : each stage starts from the model of the one before it, with a fresh optimizer and schedule
    "joint"   : one run over the data of all stages, shuffled together, with the settings of the last; its folder
                is `out/joint`. Longer chats than its rows are dropped or cut as those settings say

    A killed call goes on in the stage that it was in. Returns the result of each run.
    """
    if not stages or len({stage.name for stage in stages}) < len(stages):
        raise RecipeError(
            "The stages are none, or two have one name", where="stages", remedy="Name each stage differently"
        )
    out = Path(out)
    if schedule == "joint":
        files = [file for stage in stages for file in data_files(stage.data)]
        stages = [SftStage("joint", files, stages[-1].settings)]
    elif schedule != "in_turn":
        raise RecipeError(f"There is no schedule {schedule!r}", where="schedule", remedy="in_turn or joint")
    results: list[SftResult] = []
    for stage in stages:
        if stage.name in ("model", "") or Path(stage.name).name != stage.name:
            raise RecipeError(
                f"A stage cannot be called {stage.name!r}",
                where="stages",
                remedy="Its name is that of a folder",
            )
        before = results[-1].final if results else start
        result = sft(
            before, stage.data, out / stage.name, stage.settings, tokenizer=tokenizer, generation=generation
        )
        results.append(result)
    join_ranks(stages[-1].settings.device).from_main(lambda: _copy_model(results[-1].final, out / "model"))
    return (*results[:-1], replace(results[-1], final=out / "model"))


def _copy_model(model: Path, to: Path) -> None:
    if not to.exists():
        with replacing_folder(to) as temporary:
            shutil.copytree(model, temporary, dirs_exist_ok=True)


def data_files(data: Path | str | Sequence[Path | str]) -> list[Path | str]:
    """The files of one data set."""
    return [data] if isinstance(data, Path | str) else list(data)
