"""The recipe's final training on two gloo ranks: the losses of one process, a stop in between, errors as sentences."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation.atomic import read_json
from curation.documents import Document
from curation.errors import DataError, MachineError, RecipeError
from mixing.mixture import Mixture, write_mixture
from probes.capability import write_probes
from recipes.execute import open_run
from recipes.final_settings import FinalSettings
from recipes.load import dump_recipe
from recipes.pipeline import Run
from recipes.stages import final_ranks, rank_entry
from recipes.stages.final import PRETRAIN, _pretrain
from tests.recipes.miniature import miniature_recipe
from training.run_log import read_rows
from training.tokenizer import save_tokenizer, train_tokenizer
from training.tokenizing import write_tokens

ROOT = Path(__file__).parents[2]
PHASES = '[{"name": "all", "share": 1.0, "mixture": "uniform"}]'
START = "import sys; from tests.recipes.test_final_ranks import pretrain; pretrain(*sys.argv[1:])"


def make_run(folder: Path, *overrides: str) -> Run:
    """A run of the miniature recipe, with the files that its final training reads."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = miniature_recipe(folder)
    run = open_run(recipe, folder / "run", [f"final.phases={PHASES}", *overrides])
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["one", "two", "three", "four", "five"], k=60)) for _ in range(480)]
    tokenizer = train_tokenizer(texts, 512, folder / "trained")
    save_tokenizer(tokenizer, run.path("tokenizer", "model"))
    names = [source.name for source in run.recipe.sources]
    for name in names:
        write_tokens(
            [(f"{name}{n}", text) for n, text in enumerate(texts)], tokenizer, run.path("tokens", name), name
        )
    write_probes(run.path("probes"), {"code": [Document("p", texts[0], "s")]})
    write_mixture(
        run.path("mixtures", "uniform", "mixture.json"), Mixture({name: 1 / len(names) for name in names})
    )
    run.path("recipe.yaml").write_text(dump_recipe(run.recipe), encoding="utf-8")
    return run


def pretrain(folder: str) -> None:
    """What a user's process does; TrainingStopped gives its exit code."""
    from curation.errors import MixwrightError

    try:
        _pretrain(open_run(Path(folder) / "recipe.yaml", Path(folder)))
    except MixwrightError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def start(run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(run.folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_make_the_model_of_one_process_also_after_a_stop(tmp_path: Path) -> None:
    # A rank hears of the stop within half a second, in which it makes 50 of these steps.
    steps = 320
    alone = make_run(tmp_path / "alone", f"final.tokens={512 * steps}")
    spent = _pretrain(alone)
    two = make_run(
        tmp_path / "two", f"final.tokens={512 * steps}", "final.processes=2", "final.resume_every=1000"
    )
    log = two.path("training", "pretrain", "metrics.jsonl")
    process = start(two)
    for _ in range(1200):
        if (log.is_file() and read_rows(log)) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "asked to stop and has saved step" in said, said
    stopped = len(read_rows(log))
    assert 0 < stopped < steps
    assert _pretrain(two) == spent
    ours, wanted = (read_rows(run.path("training", "pretrain", "metrics.jsonl")) for run in (two, alone))
    assert len(ours) == steps and [row["loss"] for row in ours] == pytest.approx(
        [row["loss"] for row in wanted], rel=1e-2
    )
    assert (two.path("training", "pretrain", "model", "model.safetensors")).is_file()
    evaluated = [
        [json.loads(line)["step"] for line in run.path("training", "pretrain", "evaluations.jsonl").open()]
        for run in (two, alone)
    ]
    assert evaluated[0] == evaluated[1]


def test_a_finished_training_counts_however_its_processes_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "one", "final.tokens=2048")
    spent = _pretrain(run)
    few = open_run(run.folder / "recipe.yaml", run.folder, ["final.processes=2"])
    monkeypatch.setattr(final_ranks.sys, "executable", "/bin/false")
    assert _pretrain(few) == spent
    run.path("training", "pretrain", "result.json").unlink()
    with pytest.raises(MachineError, match="ended with code 1"):
        _pretrain(few)


def test_an_error_of_a_rank_is_noted_and_raised_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "few", "final.processes=2")
    run.path("tokens", run.recipe.sources[0].name, "tokens-00000.bin").write_bytes(b"")
    monkeypatch.setenv("RANK", "1")
    assert rank_entry.main(str(run.folder), str(tmp_path), str(os.getpid())) == 0
    with pytest.raises(DataError, match="tokens-00000"):
        final_ranks._raise(read_json(tmp_path / "rank-1.json"))


def test_the_number_of_processes_is_no_part_of_the_stages_key(tmp_path: Path) -> None:
    one, two = (
        open_run(miniature_recipe(tmp_path), tmp_path / "run", [f"final.processes={n}"]).recipe
        for n in (1, 2)
    )
    assert one.final != two.final and PRETRAIN.settings(one) == PRETRAIN.settings(two)


def test_processes_that_cannot_share_an_update_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`processes` \(3\) must divide `batch_sequences` \(8\)"):
        open_run(miniature_recipe(tmp_path), tmp_path / "run", ["final.processes=3"])
    assert FinalSettings().processes == 1
