"""A step of GRPO done again from its record has the same bits; a changed record is noticed."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from curation.errors import DataError, RecipeError
from recipes.cli import app, post_training
from tests.training.post_training_models import tiny_folder, write_rows
from training.advantages import LeadSettings
from training.grpo import GrpoSettings, ObjectiveSettings, grpo
from training.replay import replay, settings_of
from training.rollout import RolloutSettings

assert post_training  # it adds its command
SETTINGS = GrpoSettings(
    steps=5,
    prompts_per_step=3,
    replicas=4,
    rollout=RolloutSettings(thinking_tokens=3, answer_tokens=3),
    objective=ObjectiveSettings(lead=LeadSettings(), kl_coefficient=0.05),
    updates=2,
    learning_rate=1e-2,
    micro_batch_rollouts=5,
    checkpoint_every=2,
    seed=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    start = tiny_folder(folder / "start")
    prompts = write_rows(folder / "p.jsonl", [{"prompt": f"{n} =", "answer": str(n)} for n in range(7)])
    grpo(start, prompts, has_seven, folder / "out", SETTINGS)
    return folder / "out", start


def has_seven(completion: str, answer: str) -> float:
    return float("7" in completion.split())


@pytest.mark.parametrize("step", [1, 4, 5])
def test_the_same_bits(run, step):
    folder, _ = run
    found = replay(folder, step, reward=has_seven)
    assert found.same and found.rewards_differ == 0 and found.rollouts == 12
    assert found.grad_norm == found.recorded_grad_norm and found.loss == found.recorded_loss
    assert found.updates_repeated <= 2 * step
    assert replay(folder, step).rewards_differ is None  # a function that nobody handed in


def test_settings_come_back(run):
    folder, _ = run
    recorded = json.loads((folder / "training.json").read_text())["training"]
    assert settings_of(recorded) == replace(SETTINGS, checkpoint_every=10)


def test_a_changed_record_is_noticed(run, tmp_path):
    import shutil

    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "rollouts" / "step-2.parquet"
    table = parquet.read_table(path)
    texts = ["7"] + table["text"].to_pylist()[1:]
    changed = table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts))
    weights = [w * 2 for w in table["weight"].to_pylist()]
    changed = changed.set_column(table.schema.get_field_index("weight"), "weight", pa.array(weights))
    parquet.write_table(changed, path)
    found = replay(tmp_path / "run", 2, reward=lambda text, answer: -1.0)
    assert not found.same and found.rewards_differ == 12 and found.verdicts_differ >= 1
    path.unlink()
    with pytest.raises(DataError, match="record of a step is missing"):
        replay(tmp_path / "run", 2)
    with pytest.raises(RecipeError, match="has not made step 9"):
        replay(folder, 9)
    with pytest.raises(RecipeError, match="has other weights"):
        replay(folder, 1, start=tiny_folder(tmp_path / "other", seed=5))
    with pytest.raises(RecipeError, match="no folder of a GRPO run"):
        replay(tmp_path, 1)


def test_the_command(run, tmp_path):
    folder, _ = run
    found = CliRunner().invoke(app, ["replay", str(folder), "--step", "3", "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["same"]
    shown = CliRunner().invoke(app, ["replay", str(folder), "--step", "3"])
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 80
