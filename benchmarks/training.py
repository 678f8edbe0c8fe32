"""Tokens a second of a training step on a CPU, ours against the trainers that people use, taking turns.

    python -m benchmarks.training               # the table, about four minutes
    python -m benchmarks.training --write       # also into docs/benchmarks.md
    python -m benchmarks.training --resume      # time from start to the first step after a resume

Everybody trains a Llama-family decoder of 4 layers x 256 (4 heads, 2 of keys, feed-forward 768, 8,192 tokens,
tied, 5.2M parameters) on 8 sequences of 256 tokens with AdamW and clipping at 1.0, in one thread. Ours is the
whole loop `training.loop.train` with packed, document-masked sequences, positions that restart and its log;
the others read unmasked rows that are ready in memory. Each contestant lives in a thread of its own that
waits for its turn, so that whole trainers, with their own loops, can be timed step by step.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Timing, machine, paired, publish, table
from curation.atomic import write_text
from curation.memory import keep_freed_memory
from curation.progress import set_progress_mode
from training.loop import TrainSettings, train
from training.model import ModelConfig
from training.order import Batch, DataOrder, MixtureSchedule, Phase
from training.run_log import read_rows
from training.tokens import TokenSource

CONFIG = ModelConfig(
    vocab_size=8192, dim=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn_dim=768, max_positions=256
)
SEQUENCES, TOKENS, FOREVER = 8, 256, 1_000_000
RATE = 1e-3
GOALS = {"HF Trainer, float32": 4.0, "HF Trainer, bf16 autocast": 2.0, "HF Trainer, bf16 + compile": 1.5}
OURS = "mixwright, bfloat16"


class Turns:
    """A trainer in a thread of its own, which does one step whenever it is asked to."""

    def __init__(self, body: Callable[[Turns], None]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._waited = False

        def run() -> None:
            try:
                torch.set_num_threads(1)
                body(self)
            except BaseException as error:
                self._error = error
            self._done.release()

        threading.Thread(target=run, daemon=True).start()
        self._done.acquire()
        self._check()

    def wait(self) -> None:
        """Called by the trainer at the start of each of its steps."""
        self._done.release()
        self._go.acquire()

    def steps(self, count: int) -> None:
        """Called by the clock."""
        for _ in range(count):
            self._go.release()
            self._done.acquire()
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def ours(precision: str, folder: Path) -> Callable[[Turns], None]:
    """Our whole loop on packed documents of about 200 tokens."""

    class Paced(DataOrder):
        turns: Turns

        def batch(self, first: int, count: int) -> Batch:
            self.turns.wait()
            return super().batch(first, count)

    def body(turns: Turns) -> None:
        phases = (Phase("all", SEQUENCES * 100_000, {"random": 1.0}),)
        order = Paced(MixtureSchedule(phases), {"random": random_source()}, TOKENS)
        order.turns = turns
        settings = TrainSettings(
            sequence_tokens=TOKENS, batch_sequences=SEQUENCES, steps=100_000, learning_rate=RATE,
            precision=precision, resume_every=0, device="cpu",
        )  # fmt: skip
        train(CONFIG, order, settings, folder / precision)

    return body


def random_source(documents: int = 2000) -> TokenSource:
    """Documents of 20 to 400 random tokens: what they say does not change the time of a step."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 400, size=documents)
    tokens = generator.integers(0, CONFIG.vocab_size, size=int(lengths.sum())).astype(np.uint16)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = [str(i) for i in range(documents)]
    return TokenSource("random", tokens, offsets, ids, lengths, "random", "", CONFIG.vocab_size)


def random_rows() -> torch.Tensor:
    """Token ids [64, 256] for the others."""
    return torch.randint(0, CONFIG.vocab_size, (64, TOKENS), generator=torch.Generator().manual_seed(0))


def hf_trainer(folder: Path, **settings: Any) -> Callable[[Turns], None]:
    """transformers' Trainer with a Llama of the same shape, its defaults but for `settings`."""

    def body(turns: Turns) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

        class Pace(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                turns.wait()

        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=CONFIG.vocab_size, hidden_size=CONFIG.dim, intermediate_size=CONFIG.ffn_dim,
                num_hidden_layers=CONFIG.layers, num_attention_heads=CONFIG.heads,
                num_key_value_heads=CONFIG.kv_heads, max_position_embeddings=TOKENS, tie_word_embeddings=True,
            )
        )  # fmt: skip
        arguments = TrainingArguments(
            str(folder / "hf"), per_device_train_batch_size=SEQUENCES, max_steps=FOREVER, learning_rate=RATE,
            use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=FOREVER,
            dataloader_pin_memory=False, **settings,
        )  # fmt: skip
        rows = [{"input_ids": row, "labels": row} for row in random_rows()]
        Trainer(model, arguments, train_dataset=rows, callbacks=[Pace()]).train()  # type: ignore[arg-type]

    return body


def litgpt(precision: str, compiled: bool) -> Callable[[Turns], None]:
    """litgpt's GPT with its loss in the loop of its `pretrain`: Fabric's precision, fused AdamW, clipping."""

    def body(turns: Turns) -> None:
        import lightning
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy

        config = Config(
            block_size=TOKENS, vocab_size=CONFIG.vocab_size, padded_vocab_size=CONFIG.vocab_size,
            n_layer=CONFIG.layers, n_head=CONFIG.heads, n_query_groups=CONFIG.kv_heads, n_embd=CONFIG.dim,
            rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP", intermediate_size=CONFIG.ffn_dim,
        )  # fmt: skip
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
        with fabric.init_module():
            model = GPT(config)
        model.lm_head.weight = model.transformer.wte.weight
        model = fabric.setup(torch.compile(model) if compiled else model)
        optimizer = torch.optim.AdamW(
            model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        optimizer = fabric.setup_optimizers(optimizer)
        rows = random_rows()
        while True:
            turns.wait()
            ids = rows[torch.randint(0, len(rows), (SEQUENCES,))]
            logits = model(ids[:, :-1])
            fabric.backward(chunked_cross_entropy(logits, ids[:, 1:].contiguous()))
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()

    return body


def contestants(folder: Path, only: str) -> Iterator[tuple[str, Callable[[Turns], None] | str]]:
    """Name and body of each; a sentence in place of the body where it cannot run here."""
    everyone: dict[str, Callable[[Turns], None]] = {
        OURS: ours("bfloat16", folder),
        "mixwright, float32": ours("float32", folder),
        "HF Trainer, float32": hf_trainer(folder),
        "HF Trainer, bf16 autocast": hf_trainer(folder, bf16=True),
        "HF Trainer, bf16 + compile": hf_trainer(folder, bf16=True, torch_compile=True),
        "litgpt, float32": litgpt("32-true", False),
        "litgpt, bf16-mixed": litgpt("bf16-mixed", False),
        "litgpt, bf16-true": litgpt("bf16-true", False),
        "litgpt, bf16-mixed + compile": litgpt("bf16-mixed", True),
    }
    for name, body in everyone.items():
        if only and not any(part in name for part in only.split("/")):
            continue
        if name.startswith("litgpt") and importlib.util.find_spec("litgpt") is None:
            yield name, "not installed"
        else:
            yield name, body
    yield "nanochat", "not a package: it is run from a clone of its repository"


def compare(rounds: int, steps: int, only: str) -> str:
    """The table, as Markdown."""
    runners: dict[str, Turns] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, body in contestants(Path(folder), only):
            if isinstance(body, str):
                absent[name] = body
                continue
            try:
                runners[name] = Turns(body)
            except ImportError as error:
                absent[name] = f"cannot be imported: {str(error).splitlines()[0]}"
                continue
            runners[name].steps(3)  # compilation, and the optimizer's state
            print(f"{name} is ready", file=sys.stderr)
        peaks = {"bfloat16 product": product("bfloat16"), "float32 product": product("float32")}
        work = {name: (lambda turn=turn: turn.steps(steps)) for name, turn in runners.items()}
        timings = paired(work | peaks, rounds=rounds)
    return report(timings, absent, steps)


def product(precision: str) -> Callable[[], None]:
    """A product of 1024 x 1024 matrices, ten times, as one of the contestants."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))

    def work() -> None:
        for _ in range(10):
            left @ right

    return work


def report(timings: dict[str, Timing], absent: dict[str, str], steps: int) -> str:
    """Tokens per CPU-second, share of the peak measured between the turns, and ours over theirs.

    "At most" is how much faster a trainer could be that did nothing but products, all at the peak.
    """
    peak = 10 * 2 * 1024**3 / timings["bfloat16 product"].seconds
    wide = 10 * 2 * 1024**3 / timings["float32 product"].seconds
    flops = CONFIG.flops_per_token(TOKENS)
    rows: list[tuple[object, ...]] = []
    for name, timing in timings.items():
        if name.endswith("product"):
            continue
        speed = steps * SEQUENCES * TOKENS / timing.seconds
        each = sorted(steps * SEQUENCES * TOKENS / seconds for seconds in timing.cpu)
        ratio = timings[OURS].ratio(timing) if OURS in timings else float("nan")
        goal = f"{GOALS[name]:g}" if name in GOALS else ""
        rows.append((name, f"{speed:,.0f}", f"{each[0]:,.0f} to {each[-1]:,.0f}",
                     f"{100 * speed * flops / peak:.0f} %", f"{ratio:.2f}",
                     f"{peak / flops / speed:.2f}", goal))  # fmt: skip
    rows += [(name, reason, "", "", "", "", "") for name, reason in absent.items()]
    head = ("trainer", "tokens per CPU-second", "rounds", "share of bf16 peak", "ours is faster by", "at most",
            "goal")  # fmt: skip
    return (
        f"## Training step\n\nA training step, {CONFIG.layers} layers x {CONFIG.dim}, {CONFIG.vocab_size:,} tokens, "
        f"{SEQUENCES} x {TOKENS}, one thread. {machine('torch', 'transformers', 'accelerate')}. Measured "
        f"between the turns: a product of 1024 x 1024 matrices does {peak / 1e9:.0f} GFLOP/s in bfloat16, "
        f"{wide / 1e9:.0f} in float32 (a ratio of {peak / wide:.2f}); {flops / 1e6:.1f} MFLOP a token.\n\n"
        + table(head, rows)
    )


RESUME_EVERY = 3


def endless(folder: Path) -> None:
    """Train until killed, with states to continue from."""
    phases = (Phase("all", SEQUENCES * 100_000, {"random": 1.0}),)
    order = DataOrder(MixtureSchedule(phases), {"random": random_source()}, TOKENS)
    settings = TrainSettings(
        sequence_tokens=TOKENS, batch_sequences=SEQUENCES, steps=100_000, learning_rate=RATE,
        precision="bfloat16", resume_every=RESUME_EVERY, device="cpu",
    )  # fmt: skip
    train(CONFIG, order, settings, folder)


def resume(times: int = 3) -> str:
    """Time from the start of a process to the first update after the one it was killed at, as a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        wait_and_kill(out, RESUME_EVERY + 1)
        found = []
        for _ in range(times):
            rows = (out / "metrics.jsonl").read_text().splitlines()[:RESUME_EVERY]
            write_text(out / "metrics.jsonl", "".join(f"{row}\n" for row in rows))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall = wait_and_kill(out, RESUME_EVERY + 1)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append((wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    walls, cpus = zip(*found, strict=True)
    return (
        f"## Going on after a kill\n\n"
        f"From the start of a killed run's next process to its first update (imports, locks, weights, moments, "
        f"data order, one step): {min(walls):.1f} to {max(walls):.1f} s of wall-clock time, {min(cpus):.1f} to "
        f"{max(cpus):.1f} s of CPU time (goal: 10 s). {machine('torch')}.\n"
    )


def wait_and_kill(out: Path, step: int) -> float:
    """Seconds until a training process has written the row of update `step`; then it is killed."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.training", "--endless", str(out)],
        cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not any(row["step"] >= step for row in read_rows(out / "metrics.jsonl")):
            if child.poll() is not None:
                raise RuntimeError(f"The training process ended with {child.returncode}")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        child.kill()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="updates of a turn")
    parser.add_argument("--only", default="", help="contestants whose name contains one of these, as a/b")
    parser.add_argument("--resume", action="store_true", help="time to the first update after a kill")
    parser.add_argument("--endless", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="also into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_progress_mode("quiet")
    keep_freed_memory()
    if options.endless:
        endless(options.endless)
    if options.resume:
        publish("training resume", resume(), write=options.write)
        return
    publish("training", compare(options.rounds, options.steps, options.only), write=options.write)


if __name__ == "__main__":
    main()
    os._exit(0)  # the trainers wait for turns that never come
