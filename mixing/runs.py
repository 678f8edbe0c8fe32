"""Proxy runs: small models trained on chosen mixtures and measured on the probes, side by side, each only once.

    <folder>/<run_id>/run.json                    what the run is, and the fingerprint of all that decides its numbers
    <folder>/<run_id>/train/                      what `training.loop.train` writes: checkpoints, metrics.jsonl, ...
    <folder>/<run_id>/evaluations/step-N.parquet  per document: probe, id, source, tokens, bytes, nats
    <folder>/<run_id>/result.json                 written last: the run is finished
    <folder>/ratios.csv, metrics.csv              all finished runs, joined by run_id

Runs with one seed start from the same weights and read each source's documents in the same order, whatever the
mixture (common random numbers): differences between them are paired, which cuts their noise several times.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.atomic import hash_file, hash_folder, hash_value, read_json, replacing, write_json, write_text
from curation.documents import read_documents
from curation.errors import DataError, RecipeError
from mixing.mixture import check_weights
from mixing.workers import Advance, Job, run_jobs
from probes.intervals import bits_per_byte, nats_per_token
from probes.likelihood import LIKELIHOOD_SCHEMA, TokenizedDocument, score_documents, tokenize_documents
from training.loop import TrainSettings, train
from training.model import Decoder, ModelConfig
from training.order import Batch, DataOrder, MixtureSchedule, Phase
from training.tokenizer import load_tokenizer
from training.tokens import TokenSource

EVALUATION_SCHEMA = pa.schema([pa.field("probe", pa.string(), nullable=False), *LIKELIHOOD_SCHEMA])
RATIO_COLUMNS = ("run_id", "seed", "budget_tokens")
METRIC_COLUMNS = ("run_id", "step", "probe", "bits_per_byte", "nats_per_token")
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class ProxyRun:
    """One training run to be made.

    run_id       : name of its folder and key of its rows
    weights      : shares of tokens by source, sum 1
    seed         : of the data order, and of the initial weights unless `init_seed` says otherwise
    budget_share : part of the settings' steps that it trains (leave-one-out without replacement trains less)
    """

    run_id: str
    weights: dict[str, float]
    seed: int
    init_seed: int | None = None
    budget_share: float = 1.0


@dataclass(frozen=True)
class ProxySettings:
    """What all runs of a study share.

    model, train : shape and training settings; their seed is replaced by each run's
    tokens       : folder of every source (`training.tokens`)
    probes       : parquet file of every probe (`probes.capability`)
    tokenizer    : folder of the tokenizer that made the tokens
    block        : sequences after which every source's share is exact (`training.order`)
    context, stride : of the evaluation; by default the training length, and half of it
    keep         : which checkpoints a finished run keeps: "all", "weights" (without optimizer states), "none"
    """

    model: ModelConfig
    train: TrainSettings
    tokens: dict[str, Path]
    probes: dict[str, Path]
    tokenizer: Path
    block: int = 128
    context: int | None = None
    stride: int | None = None
    batch_tokens: int = 8192
    keep: Literal["all", "weights", "none"] = "weights"

    @property
    def evaluation_context(self) -> int:
        return self.context or self.train.sequence_tokens

    @property
    def evaluation_stride(self) -> int:
        return self.stride or max(1, self.evaluation_context // 2)

    def inputs(self) -> dict[str, Any]:
        """Hashes of all that the runs read."""
        return {
            "tokens": {name: TokenSource.open(folder).hash for name, folder in sorted(self.tokens.items())},
            "probes": {name: hash_file(file) for name, file in sorted(self.probes.items())},
            "tokenizer": hash_folder(self.tokenizer),
        }


@dataclass(frozen=True)
class ProxyResult:
    """A finished run: where it is, what it cost, and its rows of metrics.csv.

    flops : training, 6 per parameter and token; evaluation_flops : forward passes over the probes
    seconds : of the updates; cpu_seconds : of the attempt that finished, all included
    """

    run: ProxyRun
    folder: Path
    steps: int
    tokens: int
    flops: float
    evaluation_flops: float
    seconds: float
    cpu_seconds: float
    metrics: tuple[dict[str, Any], ...] = field(repr=False)


def run_proxies(
    runs: Sequence[ProxyRun],
    settings: ProxySettings,
    folder: Path | str,
    *,
    workers: int = 1,
    description: str = "proxy runs",
) -> list[ProxyResult]:
    """Make the runs that are not finished, `workers` at a time, and rewrite ratios.csv and metrics.csv.

    A finished run of the same fingerprint is not repeated; a killed one continues from its checkpoint; one whose
    settings, data or probes have changed is deleted and made anew. Numbers do not depend on `workers`.
    Returns the results in the order of `runs`. Raises RecipeError on impossible runs, MachineError when a worker is lost.
    """
    folder = Path(folder)
    inputs = settings.inputs()
    prints = {run.run_id: _fingerprint(run, settings, inputs) for run in runs}
    for run in runs:
        _check_run(run, settings)
    if len(prints) != len(runs):
        double = next(r.run_id for i, r in enumerate(runs) if r.run_id in {o.run_id for o in runs[:i]})
        raise RecipeError(
            f"Two runs are called {double!r}", where=str(folder), remedy="Give each an id of its own"
        )
    waiting = [run for run in runs if not _is_finished(folder / run.run_id, prints[run.run_id])]
    jobs = [Job(r.run_id, _train_run, (r, settings, folder, prints[r.run_id])) for r in waiting]
    run_jobs(
        jobs,
        workers=workers,
        description=description,
        total=sum(_run_settings(run, settings).steps * settings.train.tokens_per_step for run in waiting),
        unit="tokens",
        on_result=lambda job, result: write_tables(folder),
    )
    write_tables(folder)
    return [read_result(folder, run.run_id) for run in runs]


def read_result(folder: Path | str, run_id: str) -> ProxyResult:
    """The result of a finished run. Raises DataError when it is not finished."""
    value = _read_finished(Path(folder) / run_id / "result.json")
    run = ProxyRun(**value["run"])
    costs = {k: value[k] for k in ("steps", "tokens", "flops", "evaluation_flops", "seconds", "cpu_seconds")}
    return ProxyResult(run, Path(folder) / run_id, **costs, metrics=tuple(value["metrics"]))


def evaluation_steps(folder: Path | str, run_id: str) -> tuple[int, ...]:
    """Steps at which a finished run was evaluated, rising; the last is the end of its training."""
    return tuple(sorted({row["step"] for row in read_result(folder, run_id).metrics}))


def read_evaluation(folder: Path | str, run_id: str, step: int) -> dict[str, pa.Table]:
    """Likelihood tables of a run's probes at a step (`probes.likelihood.LIKELIHOOD_SCHEMA`)."""
    path = Path(folder) / run_id / "evaluations" / f"step-{step}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The evaluation cannot be read: {error}",
            where=str(path),
            remedy="Delete the run's folder and run again",
        ) from error
    probes = sorted(set(table["probe"].to_pylist()))
    return {probe: table.filter(pc.equal(table["probe"], probe)).drop_columns(["probe"]) for probe in probes}


def write_tables(folder: Path | str) -> None:
    """Write ratios.csv and metrics.csv of all finished runs of a folder, sorted by run id, atomically."""
    folder = Path(folder)
    finished = [_read_finished(path) for path in sorted(folder.glob("*/result.json"))]
    finished.sort(key=lambda value: value["run"]["run_id"])
    sources = sorted({source for value in finished for source in value["run"]["weights"]})
    reserved = sorted(set(sources) & set(RATIO_COLUMNS))
    if reserved:
        raise RecipeError(f"A source may not be called {reserved[0]!r}: ratios.csv has a column of that name")
    ratios = [
        [value["run"]["run_id"], value["run"]["seed"], value["tokens"]]
        + [repr(float(value["run"]["weights"].get(source, 0.0))) for source in sources]
        for value in finished
    ]
    metrics = [
        [row["run_id"], row["step"], row["probe"], repr(row["bits_per_byte"]), repr(row["nats_per_token"])]
        for value in finished
        for row in sorted(value["metrics"], key=lambda row: (row["step"], row["probe"]))
    ]
    write_text(folder / "ratios.csv", _csv([*RATIO_COLUMNS, *sources], ratios))
    write_text(folder / "metrics.csv", _csv(list(METRIC_COLUMNS), metrics))


# ---- in the worker ----------------------------------------------------------------------------------------------


class _CountedOrder(DataOrder):
    """The data order, which tells how many tokens have been asked for."""

    advance: Callable[[float], None]

    def batch(self, first: int, count: int) -> Batch:
        self.advance(count * self.sequence_tokens)
        return super().batch(first, count)


def _train_run(task: tuple[ProxyRun, ProxySettings, Path, str], advance: Advance) -> None:
    run, settings, folder, fingerprint = task
    here = folder / run.run_id
    cpu = time.process_time()
    if not _same_fingerprint(here / "run.json", fingerprint):
        shutil.rmtree(here, ignore_errors=True)
        write_json(here / "run.json", {"fingerprint": fingerprint, "run": asdict(run)})
    train_settings = _run_settings(run, settings)
    sources = {name: TokenSource.open(settings.tokens[name]) for name in sorted(run.weights)}
    phase = Phase("proxy", train_settings.steps * train_settings.batch_sequences, dict(run.weights))
    order = _CountedOrder(
        MixtureSchedule((phase,), seed=run.seed, block=settings.block),
        sources,
        train_settings.sequence_tokens,
    )
    order.advance = advance
    probes = _Probes.load(settings)

    def evaluate(model: Decoder, step: int) -> dict[str, float]:
        return probes.evaluate(model, here / "evaluations" / f"step-{step}.parquet")

    done = train(settings.model, order, train_settings, here / "train", evaluate=evaluate)
    metrics = _metric_rows(here, run.run_id, train_settings.evaluate_steps)
    _clear_checkpoints(here / "train", settings.keep)
    evaluated = sum(row.pop("tokens") for row in metrics)
    write_json(
        here / "result.json",
        {
            "schema": 1,
            "fingerprint": fingerprint,
            "run": asdict(run),
            "steps": done.steps,
            "tokens": done.tokens,
            "flops": done.flops,
            "evaluation_flops": evaluated * settings.model.flops_per_token(settings.evaluation_context) / 3,
            "seconds": done.seconds,
            "cpu_seconds": time.process_time() - cpu,
            "epochs": {name: order.epochs(name) for name in sources},
            "metrics": metrics,
        },
    )


@dataclass(frozen=True)
class _Probes:
    """Tokenized probes; a document in several probes is scored once."""

    documents: tuple[TokenizedDocument, ...]
    members: tuple[tuple[str, tuple[int, ...]], ...]
    context: int
    stride: int
    batch_tokens: int

    @staticmethod
    def load(settings: ProxySettings) -> _Probes:
        files = tuple((name, str(path)) for name, path in sorted(settings.probes.items()))
        documents, members = _tokenized_probes(
            files, str(settings.tokenizer), tuple(hash_file(path) for _, path in files)
        )
        return _Probes(
            documents, members, settings.evaluation_context, settings.evaluation_stride, settings.batch_tokens
        )

    def evaluate(self, model: Decoder, path: Path) -> dict[str, float]:
        """Score all documents, write the rows of every probe, return bits per byte by probe."""
        table = score_documents(
            model, self.documents, context=self.context, stride=self.stride, batch_tokens=self.batch_tokens
        )
        parts = []
        for probe, rows in self.members:
            part = table.take(pa.array(rows))
            column = pa.array([probe] * len(rows), pa.string())
            parts.append(part.add_column(0, EVALUATION_SCHEMA.field("probe"), column))
        with replacing(path) as temporary:
            pq.write_table(pa.concat_tables(parts), temporary, compression="zstd")
        return {
            probe: bits_per_byte(part.drop_columns(["probe"]))
            for (probe, _), part in zip(self.members, parts, strict=True)
        }


@lru_cache(maxsize=2)
def _tokenized_probes(
    files: tuple[tuple[str, str], ...], tokenizer: str, hashes: tuple[str, ...]
) -> tuple[tuple[TokenizedDocument, ...], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Kept between the runs of one worker; `hashes` is there so that a changed file is read again."""
    probes = {name: read_documents(path) for name, path in files}
    unique = {d.id: d for documents in probes.values() for d in documents}
    place = {name: index for index, name in enumerate(sorted(unique))}
    tokenized = tokenize_documents([unique[name] for name in sorted(unique)], load_tokenizer(tokenizer))
    members = tuple((name, tuple(place[d.id] for d in probes[name])) for name in sorted(probes))
    return tuple(tokenized), members


def _metric_rows(folder: Path, run_id: str, steps: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for step in sorted(set(steps)):
        tables = read_evaluation(folder.parent, run_id, step)
        for probe in sorted(tables):
            rows.append(
                {
                    "run_id": run_id,
                    "step": step,
                    "probe": probe,
                    "bits_per_byte": bits_per_byte(tables[probe]),
                    "nats_per_token": nats_per_token(tables[probe]),
                    "tokens": pc.sum(tables[probe]["tokens"]).as_py(),
                }
            )
    return rows


def _clear_checkpoints(train_folder: Path, keep: str) -> None:
    if keep == "none":
        shutil.rmtree(train_folder / "checkpoints", ignore_errors=True)
    elif keep == "weights":
        for file in sorted(train_folder.glob("checkpoints/*/optimizer.safetensors")):
            file.unlink()


# ---- settings and state of a run ----------------------------------------------------------------------------------


def _run_settings(run: ProxyRun, settings: ProxySettings) -> TrainSettings:
    """The training settings of one run: its seed, its length, and an evaluation at the end."""
    given = settings.train
    steps = max(1, round(given.steps * run.budget_share))

    def scaled(points: Sequence[int]) -> tuple[int, ...]:
        inside = [point for point in points if point <= given.steps]
        return tuple(sorted({min(steps, max(round(p * run.budget_share), min(p, 1))) for p in inside}))

    wanted = {*given.evaluate_steps, given.steps}
    evaluate = scaled(tuple(wanted))
    if len(evaluate) != len({point for point in wanted if point <= given.steps}):
        raise RecipeError(
            f"Run {run.run_id!r} has {steps} steps, too few to be evaluated {len(wanted)} times",
            where=run.run_id,
            remedy="Train longer or evaluate less often",
        )
    return replace(
        given,
        steps=steps,
        seed=run.seed if run.init_seed is None else run.init_seed,
        warmup_steps=min(given.warmup_steps, max(steps - 1, 0)),
        checkpoint_steps=scaled(given.checkpoint_steps),
        evaluate_steps=evaluate,
    )


def _check_run(run: ProxyRun, settings: ProxySettings) -> None:
    if not _RUN_ID.fullmatch(run.run_id):
        raise RecipeError(
            f"{run.run_id!r} cannot be the name of a run's folder",
            where="run_id",
            remedy="Use letters, digits, '.', '_' and '-'",
        )
    check_weights(run.weights, where=f"run {run.run_id!r}")
    if not 0 < run.budget_share <= 1:
        raise RecipeError(
            f"Run {run.run_id!r} cannot train {run.budget_share:g} of the budget", where=run.run_id
        )
    for source in sorted(run.weights):
        if source not in settings.tokens:
            raise RecipeError(
                f"Run {run.run_id!r} names source {source!r}, which has no tokens",
                where=run.run_id,
                remedy=f"Sources with tokens: {', '.join(sorted(settings.tokens))}",
            )
    if not settings.probes:
        raise RecipeError(
            "There are no probes to evaluate the runs on", where="probes", remedy="Build probes first"
        )
    _run_settings(run, settings)


def _fingerprint(run: ProxyRun, settings: ProxySettings, inputs: Mapping[str, Any]) -> str:
    tokens = {name: inputs["tokens"].get(name) for name in sorted(run.weights)}
    return hash_value(
        {
            "weights": run.weights,
            "seeds": [run.seed, run.init_seed],
            "share": run.budget_share,
            "model": asdict(settings.model),
            "train": asdict(settings.train),
            "block": settings.block,
            "evaluation": [settings.evaluation_context, settings.evaluation_stride],
            "inputs": {**inputs, "tokens": tokens},
        }
    )


def _same_fingerprint(path: Path, fingerprint: str) -> bool:
    try:
        return read_json(path)["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_finished(folder: Path, fingerprint: str) -> bool:
    return _same_fingerprint(folder / "result.json", fingerprint)


def _read_finished(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"This run is not finished: {error}", where=str(path.parent), remedy="Run the proxy runs first"
        ) from error


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
