"""Plans against runs: a subprocess's peak of memory, autograd's own count of what it keeps, the time of a step."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.loop import TrainSettings, train
from training.memory_plan import layer_activations, plan_memory
from training.model import PRESETS, Decoder, ModelConfig
from training.training_plan import measure_step, plan_training

R1 = ModelConfig(4096, 128, 3, heads=4, kv_heads=2, head_dim=32, ffn_dim=384)
QWEN3 = replace(R1, family="qwen3", rope_style="half", qk_norm="rms_before_rope")
SETTINGS = TrainSettings(
    sequence_tokens=128, batch_sequences=16, steps=2, learning_rate=1e-3, device="cpu", resume_every=0
)

PEAK = """
import json, sys, tempfile
import torch
from curation.memory import peak_memory
torch.set_num_threads(1)
from tests.training.test_training_plan import random_order
from training.loop import TrainSettings, train
from training.model import ModelConfig
from training.training_plan import _resident_bytes
config, settings = (json.loads(text) for text in sys.argv[1:])
config, settings = ModelConfig(**config), TrainSettings(**settings)
order = random_order(config, settings)
idle = _resident_bytes()
with tempfile.TemporaryDirectory() as folder:
    train(config, order, settings, folder + "/run")
print(json.dumps([idle, peak_memory()]))
"""


def random_order(config, settings):
    import numpy as np

    from training.order import DataOrder, MixtureSchedule, Phase
    from training.tokens import TokenSource

    lengths = np.full(400, 50)
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, lengths.sum()).astype(np.uint32)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    source = TokenSource(
        "s", tokens, offsets, [str(i) for i in range(400)], lengths, "", "", config.vocab_size
    )
    phase = Phase("p", settings.steps * settings.batch_sequences, {"s": 1.0})
    return DataOrder(MixtureSchedule((phase,)), {"s": source}, settings.sequence_tokens)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (replace(R1, dim=256, heads=8, ffn_dim=768), {}),
        (replace(R1, vocab_size=32768, dim=192, heads=6), {"precision": "bfloat16", "average_from": 0.0}),
        (QWEN3, {"batch_sequences": 64, "micro_batch_sequences": 48}),
    ],
)
def test_a_runs_peak_of_memory_is_within_fifteen_percent(config, changes):
    settings = replace(SETTINGS, **changes)
    arguments = [json.dumps(vars(config)), json.dumps(vars(settings))]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    idle, peak = json.loads(done.stdout)
    grown = plan_memory(config, settings).process
    # The whole is what is promised; but it is mostly torch itself, so the part that grows is held to account too.
    assert idle + grown == pytest.approx(peak, rel=0.15)
    assert grown == pytest.approx(peak - idle, rel=0.25)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("config", [R1, QWEN3, replace(QWEN3, ffn_dim=512, kv_heads=4)])
@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_what_a_layer_keeps_is_what_autograd_keeps(config, low, attention):
    """Distinct storages that three layers save more than two do."""

    def kept(layers: int) -> int:
        model = Decoder(replace(config, layers=layers)).init_weights(0)
        model.attention = attention
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=low),
        ):
            hidden = model(torch.zeros(4, 300, dtype=torch.int64))
        assert hidden.requires_grad
        return sum(storage.nbytes() for storage in storages.values())

    found = kept(3) - kept(2)
    size = 2 if low else 4
    device = "cpu" if attention == "auto" else "cuda"  # a GPU runs these plain layers
    expected = layer_activations(config, 4, 300, size, device=device)
    assert expected == pytest.approx(found, rel=0.15)


def test_options_move_the_memory_the_way_they_should():
    large = PRESETS["mobilellm-r1-950m"]
    settings = replace(
        SETTINGS, sequence_tokens=2048, batch_sequences=64, micro_batch_sequences=4, precision="bfloat16"
    )
    plain = plan_memory(large, settings, device="cuda")
    assert plain.weights == 4 * 949_685_760 and plain.moments == 2 * plain.weights and plain.mean == 0
    recomputed = plan_memory(large, settings, device="cuda", activation_checkpointing=True)
    assert recomputed.activations < plain.activations / 5 and recomputed.peak < plain.peak
    eight = plan_memory(large, settings, device="cuda", ranks=8, sharded=True)
    assert eight.weights == plain.weights // 8 and eight.activations == plain.activations
    assert plan_memory(large, replace(settings, average_from=0.5), device="cuda").mean == plain.weights
    halved = plan_memory(large, replace(settings, micro_batch_sequences=2), device="cuda")
    assert 0.4 < halved.activations / plain.activations < 0.6


def test_the_time_of_a_run_is_foretold_from_a_few_steps(tmp_path):
    """CPU seconds, and a wide margin: other jobs share the caches. The plan itself is of the clock on the wall."""
    config = replace(R1, layers=6, vocab_size=1024)  # deeper than what is measured
    settings = replace(SETTINGS, steps=8, batch_sequences=8, micro_batch_sequences=4, precision="bfloat16")
    order = random_order(config, settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plan = plan_training(config, settings, clock=time.process_time)
        began = time.process_time()
        train(config, order, settings, tmp_path / "run")
        spent = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    assert plan.seconds == pytest.approx(spent, rel=0.5)
    assert plan.seconds == 8 * plan.step_seconds and plan.tokens == 8 * 8 * 128
    assert plan.total_bytes > plan.memory.peak > plan.memory.weights


def test_ranks_share_the_work():
    clock = iter(range(1000))  # every measured piece lasts one second
    settings = replace(SETTINGS, batch_sequences=8, micro_batch_sequences=2, sequence_tokens=8)
    config = ModelConfig(64, 16, 2, heads=2, kv_heads=1, head_dim=8, ffn_dim=16)
    assert measure_step(config, settings, clock=lambda: float(next(clock))) == 4.0
    assert measure_step(config, settings, ranks=4, clock=lambda: float(next(clock))) == 1.0
