"""Post-training: rollouts against transformers, a step of GRPO against TRL's, and what rewards cost.

    python -m benchmarks.post_training [--write] [--quick] [--precision float32] [rollouts step rewards memory]

One thread, CPU time, opponents in turn. `--quick` runs everything small, so that it cannot rot; `--write` puts the
tables into docs/benchmarks.md. TRL is needed for `step` only, and left out where it is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine, publish, table
from training.budgets import Ending
from training.grpo import grpo
from training.grpo_settings import GrpoSettings, ObjectiveSettings
from training.huggingface import load_huggingface, save_huggingface
from training.model import Decoder, ModelConfig
from training.rewards import named_reward
from training.rollout import Prompt, RolloutSettings, roll_out

END, PAD = 1, 2
PRECISIONS = ("float32", "bfloat16")
MEAN_LENGTH = 42  # of 128 tokens, exponential: what a policy that has learnt to stop looks like


def ragged_model(folder: Path, *, quick: bool) -> Path:
    """A Llama of 7M parameters (5.1M without its head) whose every token is the last with probability 1 / 42.

    The first coordinate of its residual stream is a constant that no layer writes to; the end token's row of the
    output weight reads it alone, and no other row does.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    width, vocabulary = (64, 512) if quick else (256, 8192)
    config = ModelConfig(
        vocabulary, width, 4, heads=4, kv_heads=4, head_dim=width // 4, ffn_dim=width * 5 // 2, tied=False,
        max_positions=512, family="llama", rope_style="half", qk_norm="none",
    )  # fmt: skip
    model = Decoder(config).init_weights(0)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight[0] = 0  # type: ignore[union-attr,index]
            layer.mlp.down_proj.weight[0] = 0  # type: ignore[union-attr,index]
        model.embed_tokens.weight[:, 0] = 1.0
        assert model.lm_head is not None
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[END] = 0
        hidden = model(torch.randint(3, vocabulary, (8, 32)))
        others = torch.logsumexp(model.logits(hidden)[..., 3:], -1).mean() - torch.log(torch.tensor(41.0))
        model.lm_head.weight[END, 0] = others / hidden[..., 0].mean()
    words = {f"w{at}": at for at in range(vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="w0", eos_token=f"w{END}", pad_token=f"w{PAD}"
    )
    save_huggingface(model, folder, tokenizer, {"pad_token_id": PAD})
    return folder


def rates(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Useful tokens per CPU second of each contestant in each round, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            began = time.process_time()
            tokens = work()
            if number:
                found[name].append(tokens / (time.process_time() - began))
    return found


def rollouts(folder: Path, *, quick: bool, write: bool, precisions: Sequence[str] = PRECISIONS) -> None:
    """Useful tokens per CPU second on ragged lengths: ours against `transformers.generate`."""
    from transformers import AutoModelForCausalLM

    groups, replicas, longest = (2, 4, 16) if quick else (8, 8, 128)
    generator = torch.Generator().manual_seed(1)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    prompts = torch.randint(3, vocabulary, (groups, 32), generator=generator)
    ours = load_huggingface(folder)
    settings = RolloutSettings(max_tokens=longest, batch_rollouts=groups * replicas)
    ending, steps = Ending(frozenset({END})), iter(range(1000))
    asked = [Prompt(at, tuple(row.tolist())) for at, row in enumerate(prompts)]

    def own(autocast: bool) -> Callable[[], int]:
        def work() -> int:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = roll_out(ours, asked, settings, ending, replicas=replicas, step=next(steps))
            return sum(len(rollout.completion_ids) for rollout in found)

        return work

    def theirs(dtype: torch.dtype) -> Callable[[], int]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        ids = prompts.repeat_interleave(replicas, 0)

        @torch.no_grad()
        def work() -> int:
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=longest,
                eos_token_id=END, pad_token_id=PAD,
            )[:, ids.shape[1] :]  # fmt: skip
            ended = (made == END).int().cumsum(1) - (made == END).int()
            return int((ended == 0).sum())

        return work

    contestants: dict[str, Callable[[], int]] = {}
    for name in precisions:
        contestants[f"generate, {name}"] = theirs(getattr(torch, name))
        contestants[f"ours, {name}"] = own(name == "bfloat16")
    found = rates(contestants, 1 if quick else 2)
    rows = []
    for name, values in found.items():
        precision = name.rpartition(" ")[2]
        base = found[f"generate, {precision}"]
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        rows.append((name, f"{statistics.median(values):,.0f}", f"{ratio:.1f}"))
    text = (
        "## Rollouts\n\n"
        f"`python -m benchmarks.post_training rollouts`: {groups} prompts of 32 tokens, {replicas} answers to each, "
        f"at most {longest} tokens, each the last with probability 1/{MEAN_LENGTH}; 4 layers of width 256, "
        "vocabulary 8,192. Useful tokens are those up to the end. Medians of rounds in turn.\n\n"
        + table(("engine", "useful tokens per CPU second", "times generate"), rows)
        + f"\n{machine('torch', 'transformers')}. One thread. Random weights are not a trained policy: the logits are "
        "nearly flat.\n"
    )
    publish("rollouts", text, write=write)


def step(folder: Path, *, quick: bool, write: bool, precisions: Sequence[str] = PRECISIONS) -> None:
    """CPU seconds of a whole step of GRPO: sampling, rewards, one update; ours against TRL's on the same weights."""
    groups, replicas, longest, steps = (2, 4, 16, 2) if quick else (8, 8, 128, 2)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(2)
    prompts = [
        " ".join(f"w{token}" for token in torch.randint(3, vocabulary, (32,), generator=generator).tolist())
        for _ in range(groups * (steps + 1))
    ]
    rows = []
    seconds: dict[str, float] = {}
    for precision in precisions:
        for name, run in (("TRL", _trl_steps), ("ours", _own_steps)):
            if name == "TRL" and importlib.util.find_spec("trl") is None:
                continue
            with tempfile.TemporaryDirectory() as out:
                marks = run(folder, prompts, Path(out), groups, replicas, longest, steps + 1, precision)
            taken = [b - a for a, b in pairwise(marks)]
            seconds[f"{name} {precision}"] = statistics.median(taken)
            print(f"{name}, {precision}: {taken}", file=sys.stderr, flush=True)
            ratio = seconds.get(f"TRL {precision}", float("nan")) / seconds[f"{name} {precision}"]
            rows.append((f"{name}, {precision}", f"{seconds[f'{name} {precision}']:.2f}", f"{ratio:.1f}"))
    text = (
        "## A step of GRPO\n\n"
        f"`python -m benchmarks.post_training step`: the same weights, {groups} prompts of 32 tokens, {replicas} "
        f"answers of at most {longest} tokens (mean {MEAN_LENGTH}), Dr. GRPO's loss, no deviation, no KL, one update. "
        "CPU seconds from one step's rewards to the next's, median.\n\n"
        + table(("trainer", "CPU seconds per step", "times TRL"), rows)
        + f"\n{machine('torch', 'transformers', 'trl')}. One thread. TRL in micro-batches of 16 as ours; its bfloat16 "
        "is bf16=True.\n"
    )
    publish("grpo step", text, write=write)


def _own_steps(
    folder: Path,
    prompts: list[str],
    out: Path,
    groups: int,
    replicas: int,
    longest: int,
    steps: int,
    precision: str,
) -> list[float]:
    (out / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in prompts)
    )
    marks: list[float] = []
    calls = [0]

    def reward(completion: str, answer: str) -> float:
        if calls[0] % (groups * replicas) == 0:
            marks.append(time.process_time())
        calls[0] += 1
        return float(len(completion.split()) % 2)

    settings = GrpoSettings(
        steps=steps, prompts_per_step=groups, replicas=replicas, rollout=RolloutSettings(max_tokens=longest),
        objective=ObjectiveSettings(overlong_filter=False), learning_rate=1e-6, checkpoint_every=1000,
        micro_batch_rollouts=16, precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    grpo(folder, out / "prompts.jsonl", reward, out / "run", settings)
    return marks


def _trl_steps(
    folder: Path,
    prompts: list[str],
    out: Path,
    groups: int,
    replicas: int,
    longest: int,
    steps: int,
    precision: str,
) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    marks: list[float] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        marks.append(time.process_time())
        return [float(len(text.split()) % 2) for text in completions]

    size = min(16, groups * replicas)
    config = GRPOConfig(
        output_dir=str(out), use_cpu=True, bf16=precision == "bfloat16", report_to=[], max_steps=steps,
        per_device_train_batch_size=size, gradient_accumulation_steps=groups * replicas // size,
        num_generations=replicas, max_completion_length=longest, learning_rate=1e-6, beta=0.0, loss_type="dr_grpo",
        scale_rewards="none", save_strategy="no", logging_steps=1000, activation_checkpointing=False,
        disable_tqdm=True, temperature=1.0, top_k=0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args=config, reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    return marks


def rewards(folder: Path, *, quick: bool, write: bool) -> None:
    """What checking an answer costs: integers, fractions, and programs in the sandbox."""
    rounds = 20 if quick else 300
    mathematics = named_reward("math")
    said = "<think> so it is </think> The answer is \\boxed{%s}."
    checks: dict[str, Callable[[int], object]] = {
        "math: an integer": lambda n: mathematics(said % n, str(n)),
        "math: a fraction": lambda n: mathematics(said % f"\\frac{{{n}}}{{7}}", f"{n}/7"),
    }
    if importlib.util.find_spec("math_verify"):
        from math_verify import parse, verify

        checks["math-verify in process: an integer"] = lambda n: verify(parse(str(n)), parse(said % n))
    rows = []
    for name, check in checks.items():
        check(1)
        times = []
        for n in range(rounds):
            began = time.process_time()
            check(n)
            times.append(time.process_time() - began)
        rows.append((name, f"{statistics.median(times) * 1e3:.3f}", ""))
    rows += _program_rows(20 if quick else 200)
    text = (
        "## Rewards\n\n`python -m benchmarks.post_training rewards`. Milliseconds of one check, medians; programs run "
        "in the sandbox, in processes of their own, so their wall time and its best tenth are shown, and the load "
        "counts.\n\n"
        + table(("check", "median ms", "best tenth ms"), rows)
        + f"\n{machine('math-verify')}.\n"
    )
    publish("rewards", text, write=write)


def _program_rows(rounds: int) -> list[tuple[str, str, str]]:
    from curation.errors import MachineError

    program = "```python\ndef double(x):\n    return 2 * x\n```"
    checks = {
        "code: a function, three calls": {"function": "double", "calls": [[[1], 2], [[5], 10], [[0], 0]]},
        "code: asserts of MBPP's kind": {"tests": "assert double(2) == 4", "functions": ["double"]},
    }
    rows = []
    reward = named_reward("code")
    for name, tests in checks.items():
        answer, times = json.dumps(tests), []
        try:
            assert reward(program, answer).correct  # type: ignore[union-attr]
        except MachineError as error:
            return [("code", "the sandbox refuses this machine", str(error.what))]
        for _ in range(rounds):
            began = time.perf_counter()
            reward(program, answer)
            times.append(time.perf_counter() - began)
        times.sort()
        rows.append((name, f"{statistics.median(times) * 1e3:.2f}", f"{times[len(times) // 10] * 1e3:.2f}"))
    return rows


MEMORY = """
import sys, threading, time, torch
from training.chat import RenderedChat
from training.model import Decoder, ModelConfig
from training.recomputation import recompute_layers
from training.chat_packing import chat_batch
from training.update import accumulate_gradients
torch.set_num_threads(1)
tokens, documents, every = (int(x) for x in sys.argv[1:])
config = ModelConfig(8192, 128, 4, heads=4, kv_heads=2, head_dim=32, ffn_dim=256, max_positions=32768)
model = Decoder(config).init_weights(0)
recompute_layers(model, every or None)
size = tokens // documents
chat = RenderedChat(tuple((7 * at) % 8192 for at in range(size + 1)), (False,) * 10 + (True,) * (size - 9))
batch = chat_batch([chat] * documents, [list(range(documents))], tokens)
def used():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before, peak, done = used(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], used())
        time.sleep(0.005)
thread = threading.Thread(target=watch)
thread.start()
began = time.process_time()
accumulate_gradients(model, batch)
done.append(1)
thread.join()
print(peak[0] - before, time.process_time() - began)
"""


def memory(folder: Path, *, quick: bool, write: bool) -> None:
    """Memory that an update of one long packed row takes, in a process of its own."""
    rows = []
    for tokens, documents, every in (
        [(2048, 2, 1)] if quick else [(8192, 4, 1), (8192, 4, 0), (32768, 8, 1), (32768, 8, 0), (32768, 1, 1)]
    ):
        command = [sys.executable, "-c", MEMORY, str(tokens), str(documents), str(every)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout.split()
        grown, seconds = int(said[0]) / 2**20, float(said[1])
        rows.append((f"{tokens:,}", documents, "yes" if every else "no", f"{grown:,.0f}", f"{seconds:.1f}"))
    text = (
        "## Long rows\n\n`python -m benchmarks.post_training memory`: loss and gradient of one packed row, 4 layers of "
        "width 128, vocabulary 8,192, float32. Memory beyond that of the process with model and batch.\n\n"
        + table(("tokens", "chats in the row", "recomputed", "MiB", "CPU seconds"), rows)
        + f"\n{machine('torch')}. One thread.\n"
    )
    publish("long rows", text, write=write)


SECTIONS = {"rollouts": rollouts, "step": step, "rewards": rewards, "memory": memory}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", default=[], help=", ".join(SECTIONS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--precision", choices=PRECISIONS, action="append", help="of rollouts and step; default both"
    )
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = ragged_model(Path(place) / "model", quick=chosen.quick)
        for name in chosen.sections or SECTIONS:
            section = SECTIONS[name]
            if name in ("rollouts", "step"):
                section = partial(section, precisions=chosen.precision or PRECISIONS)
            section(folder, quick=chosen.quick, write=chosen.write)


if __name__ == "__main__":
    main()
