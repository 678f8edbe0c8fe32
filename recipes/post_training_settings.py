"""The recipe's blocks about what follows pre-training: fine-tuning on chats and GRPO."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from recipes.settings import Count, Positive, Settings, Share


class GeneralSettings(Settings):
    """Fine-tuning on general chats, before or together with the reasoning chats (MobileLLM-R1, table 8)."""

    data: str
    """A .jsonl file of {"messages": [...]}, relative to the recipe."""
    schedule: Literal["in_turn", "joint"] = "in_turn"
    """`in_turn`: a run of its own comes first, with the settings below. `joint`: one run over both."""
    epochs: Count = 2
    learning_rate: Positive = 5e-6
    warmup_share: Share = 0.03


class ShortenSettings(Settings):
    """Shortening the thoughts of the reasoning chats by data, see training.shortening; in this order."""

    drop_longest: Share = 0.0
    condition: bool = False
    truncate: Count | None = None


class SftSettings(Settings):
    """Supervised fine-tuning on reasoning chats; `generated` makes them from worked problems."""

    data: str = "generated"
    """`generated`, or a .jsonl file of {"messages": [...]}, relative to the recipe."""
    examples: Count = 4000
    epochs: Count = 2
    sequence_tokens: Count = 256
    batch_sequences: Count = 16
    learning_rate: Positive = 1e-3
    warmup_share: Share = 0.03
    seed: int = 11
    general: GeneralSettings | None = None
    shorten: ShortenSettings | None = None
    recompute: bool = False
    """Recompute activations in the backward pass, for rows of up to 32k tokens."""

    def deciding(self) -> dict[str, Any]:
        """For the stage's key; what is not used is left out, so that older runs keep theirs."""
        found = self.model_dump(exclude={"recompute"})
        return {k: v for k, v in found.items() if k not in ("general", "shorten") or v is not None}


class GrpoSettings(Settings):
    """Group-relative policy optimisation on a task whose answers can be checked."""

    data: str = "generated"
    """`generated`, or a .jsonl file of {"prompt", "answer"}, relative to the recipe."""
    steps: Count = 20
    prompts_per_step: Count = 8
    group: Count = 8
    """G: answers sampled for each prompt."""
    temperature: Positive = 1.0
    thinking_tokens: Count = 48
    """Budget for thinking; then the closing string is forced."""
    answer_tokens: Count = 16
    learning_rate: Positive = 2e-4
    length_reward: bool = True
    """GRPO-LEAD's length term and difficulty weights."""
    held_out: Count = 128
    """Problems, not trained on, on which accuracy is measured before and after."""
    seed: int = 13


class PostTrainingSettings(Settings):
    """What follows pre-training."""

    sft: SftSettings | None = SftSettings()
    grpo: GrpoSettings | None = GrpoSettings()

    @model_validator(mode="after")
    def _grpo_follows_sft(self) -> PostTrainingSettings:
        if self.grpo is not None and self.sft is None:
            raise ValueError("`grpo` needs `sft`: a model that never saw a chat cannot answer one")
        return self
