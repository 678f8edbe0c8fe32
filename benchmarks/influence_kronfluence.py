"""kronfluence, the fastest opponent of the influence benchmark, on its model, samples and threads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.measure import paired
from mixing.influence.documents import SampleDocument

if TYPE_CHECKING:
    from benchmarks.influence import Contest


def kronfluence_work(contest: Contest, folder: str) -> dict[str, Callable[[], object]]:
    """kronfluence's pairwise scores of one averaged query, without curvature, for few and for many samples.

    What a sample costs is the difference: the query's gradient is made in both.
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Language(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["x"][:, :-1], use_cache=False).logits
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["x"][:, 1:].flatten(), reduction="sum"
            )

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

    class Rows(torch.utils.data.Dataset):
        def __init__(self, documents: list[SampleDocument]) -> None:
            self.documents = documents

        def __len__(self) -> int:
            return len(self.documents)

        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            return {"x": torch.as_tensor(self.documents[at].ids)}

    task = Language()
    copied = LlamaForCausalLM(contest.model.config)
    copied.load_state_dict(contest.model.state_dict())
    analyzer = Analyzer(
        "kron", prepare_model(copied, task), task, cpu=True, disable_tqdm=True, output_dir=folder
    )
    few, many = 4, 4 + len(contest.timed)
    query, train = Rows(next(iter(contest.probes.values()))[:4]), Rows(contest.samples[:many])
    analyzer.fit_all_factors(
        "f", train, factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True
    )

    def scored(count: int) -> Callable[[], object]:
        return lambda: analyzer.compute_pairwise_scores(
            "s",
            "f",
            query,
            train,
            per_device_query_batch_size=4,
            per_device_train_batch_size=4,
            train_indices=list(range(count)),
            score_args=ScoreArguments(aggregate_query_gradients=True),
            overwrite_output_dir=True,
        )

    return {"few": scored(few), "many": scored(many), "F": contest.work["F"]}


def measure_kronfluence(contest: Contest, rounds: int) -> str:
    """A sentence."""
    with tempfile.TemporaryDirectory() as folder:
        times = paired(kronfluence_work(contest, folder), rounds=rounds)
    ratios = sorted(
        (b - a) / f for a, b, f in zip(times["few"].cpu, times["many"].cpu, times["F"].cpu, strict=True)
    )
    return (
        f"kronfluence, one averaged query, no curvature, {contest.width} wide: {ratios[len(ratios) // 2]:.2f} F for "
        "each sample (matrices of linear layers alone; rounds " + ", ".join(f"{r:.2f}" for r in ratios) + ")."
    )
