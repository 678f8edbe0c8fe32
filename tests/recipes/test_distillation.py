"""The recipe's `distill` block: what it trains, what the plan says of it, and what it refuses."""

from pathlib import Path

import pytest

from curation.errors import RecipeError
from mixing.mixture import Mixture, write_mixture
from recipes.execute import open_run
from recipes.load import load_recipe
from recipes.pipeline import Run
from recipes.stages.final import PRETRAIN
from tests.recipes.test_load import GOOD, write
from training.huggingface import save_huggingface
from training.model import Decoder, ModelConfig
from training.run_log import read_rows
from training.tokenizer import train_tokenizer
from training.tokens import write_tokens

TEXTS = [f"Line {i}: {i} times {i} is {i * i}, and that is all there is to say about {i}." for i in range(40)]
FINAL = """\
model: {layers: 1, dim: 32, heads: 2, kv_heads: 1, ffn_dim: 64, max_positions: 256}
tokenizer: {vocabulary: 300}
final:
  tokens: 2048
  sequence_tokens: 32
  batch_sequences: 4
  precision: float32
  phases:
    - {name: broad, share: 0.5, mixture: uniform}
    - {name: taught, share: 0.5, mixture: uniform, distill: {teacher: teacher, precision: float32, alpha: 0.2, %s}}
"""


def prepared(folder: Path, distill: str) -> Run:
    """A run folder as the stages before pre-training leave it, and a teacher beside the recipe."""
    run = open_run(write(folder, GOOD + FINAL % distill), folder / "run")
    tokenizer = train_tokenizer(TEXTS, 300, run.path("tokenizer", "model"))
    for name, texts in (("a", TEXTS[:20]), ("b", TEXTS[20:])):
        pairs = ((f"{name}{i}", text) for i, text in enumerate(texts))
        write_tokens(pairs, tokenizer, run.path("tokens", name), name)
    write_mixture(run.path("mixtures", "uniform", "mixture.json"), Mixture({"a": 0.5, "b": 0.5}))
    larger = ModelConfig(300, 48, 2, heads=2, kv_heads=1, head_dim=24, ffn_dim=96, max_positions=128)
    save_huggingface(Decoder(larger).init_weights(0), folder / "teacher", tokenizer)
    return open_run(folder / "recipe.yaml", folder / "run")  # now that the teacher is there


@pytest.mark.parametrize("distill", ["cache: none", "cache: sampled, entries: 4"])
def test_a_phase_learns_from_the_teacher_beside_the_recipe(tmp_path: Path, distill: str) -> None:
    run = prepared(tmp_path, distill)
    plain, _ = load_recipe(write(tmp_path / "run", GOOD + FINAL.replace(", distill: {", "} # {") % distill))
    taught = PRETRAIN.estimate(run.recipe).flops - PRETRAIN.estimate(plain).flops
    larger = ModelConfig(300, 48, 2, heads=2, kv_heads=1, head_dim=24, ffn_dim=96, max_positions=128)
    assert taught == pytest.approx(1024 * larger.flops_per_token(32) / 3)
    spent = PRETRAIN.work(run)
    assert spent.flops > PRETRAIN.estimate(plain).flops and spent.tokens == 2048
    rows = read_rows(run.path("training", "pretrain", "metrics.jsonl"))
    assert [row["divergence"] != 0 for row in rows] == [False] * 8 + [True] * 8
    caches = list(run.path().rglob("part-*/ids.npy"))
    assert bool(caches) == ("sampled" in distill)
    assert all(run.path("teacher_cache") in path.parents for path in caches)


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ("beta: 0, alpha: 0", "`alpha` and `beta` are both 0"),
        ("temperature: 0", "temperature"),
        ("cache: top_k, entries: 1", "needs 2 `entries`"),
        ("cache: sampled, direction: reverse", "needs all of the teacher's probabilities"),
        ("cache: all", "must be one of none, sampled"),
        ("temprature: 2", "did you mean `temperature`"),
    ],
)
def test_lessons_that_cannot_be_are_sentences(tmp_path: Path, distill: str, said: str) -> None:
    text = (GOOD + FINAL % distill).replace("alpha: 0.2, ", "" if "alpha" in distill else "alpha: 0.2, ")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert said in str(caught.value) and "line" in str(caught.value)


def test_a_phase_with_distillation_needs_a_teacher(tmp_path: Path) -> None:
    text = (GOOD + FINAL % "beta: 1").replace("teacher: teacher, ", "")
    with pytest.raises(RecipeError, match="`teacher` is missing"):
        load_recipe(write(tmp_path, text))
