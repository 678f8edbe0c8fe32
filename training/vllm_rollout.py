"""Rollouts by vLLM, where it is installed: the same prompts, budgets, masks and records as training.rollout.

vLLM gets and gives token ids. What a budget does is decided here, by the rows of our own loop: a row is asked for
as many tokens as its phase has left, its tokens are taken one by one, and where a closing string is to be forced,
what vLLM wrote beyond that point is thrown away and the row goes on from the forced string (its prefix is in
vLLM's cache). So a forced token is flagged as in our loop.

What is different: the random numbers are vLLM's own, seeded by (seed, step, prompt, replica, tokens so far), and its
kernels round differently from ours, so a sample may depend on its batch and its log-probabilities are not exactly
those of the update (`logprob_gap` in the log says by how much). Forced tokens have the log-probability 0.

**Tested against a stand-in only.** It was written from vLLM's documentation (LLM, SamplingParams, apply_model,
reset_prefix_cache; version 0.10 and later) on machines that cannot install vLLM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from curation.atomic import hash_value
from curation.errors import MachineError, RecipeError
from training.budgets import Ending, RolloutSettings
from training.huggingface import huggingface_name
from training.model import Decoder
from training.rollout import Prompt, Rollout, Row, check_prompts


class VllmEngine:
    """vLLM with the weights of a policy.

    folder : the policy as a Hugging Face folder; vLLM reads its architecture and tokenizer there
    dtype  : of vLLM's weights; "bfloat16" is usual, "float32" is nearer to a float32 update
    """

    def __init__(self, folder: Path | str, *, dtype: str = "bfloat16", max_tokens: int | None = None) -> None:
        self._vllm = _import_vllm()
        self._llm = self._vllm.LLM(
            model=str(folder),
            dtype=dtype,
            max_model_len=max_tokens,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # at the sampling temperature, as the update recomputes them
            gpu_memory_utilization=0.4,  # the policy, its gradient and Adam's moments share the device
        )

    def load(self, model: Decoder) -> None:
        """Give vLLM the weights of `model`, and let it forget what it has cached under others."""
        weights = list(named_weights(model))

        def load_weights(theirs: Any) -> None:
            theirs.load_weights(weights)

        self._llm.apply_model(load_weights)
        self._llm.reset_prefix_cache()

    def roll_out(
        self,
        model: Decoder,
        prompts: Sequence[Prompt],
        settings: RolloutSettings,
        ending: Ending,
        *,
        replicas: int = 1,
        seed: int = 0,
        step: int = 0,
    ) -> list[Rollout]:
        """`replicas` completions of each prompt by `model`, in the order of prompts and replicas; as `roll_out`."""
        check_prompts(model, prompts, settings, ending)
        self.load(model)
        rows = [Row(prompt, replica, settings, ending) for prompt in prompts for replica in range(replicas)]
        live = rows
        while live:
            inputs = [{"prompt_token_ids": [*row.prompt.ids, *row.ids]} for row in live]
            wanted = [self._sampling(row, settings, ending, seed, step) for row in live]
            for row, answer in zip(live, self._llm.generate(inputs, wanted, use_tqdm=False), strict=True):
                _take(row, answer.outputs[0])
            live = [row for row in live if row.finish is None]
        return [row.rollout() for row in rows]

    def _sampling(self, row: Row, settings: RolloutSettings, ending: Ending, seed: int, step: int) -> Any:
        place = [seed, step, row.prompt.index, row.replica, len(row.ids)]
        return self._vllm.SamplingParams(
            n=1,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=row.left(),
            seed=int(hash_value(place)[:8], 16),
            stop_token_ids=sorted(ending.end_ids),
            ignore_eos=True,  # the ends are those of `ending`, and stand in the completion
            logprobs=0,  # of the sampled token only
            detokenize=False,
        )


def named_weights(model: Decoder) -> Iterable[tuple[str, Tensor]]:
    """The weights of a policy under the names of its Hugging Face folder."""
    for name, parameter in model.named_parameters():
        known = isinstance(model, Decoder)
        yield (
            (huggingface_name(name, model.config.family) if known else name.removeprefix("inner.")),
            parameter.data,
        )


def _take(row: Row, written: Any) -> None:
    """Let `row` take what vLLM wrote, up to where it finishes or something is to be forced; and force that."""
    if not written.token_ids or written.logprobs is None:
        raise MachineError(
            "vLLM returned no tokens, or no log-probabilities",
            where=f"prompt {row.prompt.index}, replica {row.replica}",
            remedy="Use vLLM 0.10 or later, and a longer context than prompt and completion",
        )
    for token, logprobs in zip(written.token_ids, written.logprobs, strict=True):
        taken = row.token_for(token)
        if row.to_force:
            break  # the end token gives way to the closing string
        row.take(taken, float(logprobs[token].logprob))
        if row.finish is not None or row.to_force:
            break
    while row.to_force and row.finish is None:
        row.take(row.to_force[0], 0.0)


def _import_vllm() -> Any:
    # In one process, so that the weights are handed over without a copy through a pipe.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:
        raise MachineError(
            "Rollouts by vLLM need the package vllm",
            where="rollout.engine",
            remedy="Install it (it needs a GPU), or leave the engine at own",
        ) from error
    if not hasattr(vllm.LLM, "apply_model"):
        raise RecipeError(
            "This vLLM cannot be given new weights", where="rollout.engine", remedy="Use 0.10 or later"
        )
    return vllm
