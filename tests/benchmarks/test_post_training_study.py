"""What the study of post-training concludes from tables whose answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import post_training_study as study
from curation.errors import DataError
from training.matrix import Outcome
from training.matrix_steps import Cost
from training.matrix_table import Interval


def outcomes(lead_right: float, lead_length: float) -> dict[str, Outcome]:
    """Four seeds and 400 problems: all models are as good as each other, but the one after LEAD."""
    random = np.random.default_rng(0)
    sft = random.random((4, 400)) < 0.9

    def outcome(name: str, right: np.ndarray, length: float) -> Outcome:
        by_measure = {measure: right.astype(float) for measure in study.MEASURES}
        lengths = {measure: np.full(right.shape, length) for measure in study.MEASURES}
        costs = (Cost(1000, 0, 2e9),) * 4
        return Outcome(name, (name,), (1, 2, 3, 4), by_measure, lengths, lengths, costs)

    lead = np.where(random.random(sft.shape) < lead_right, sft, 0)
    made = {name: outcome(name, sft, 50.0) for name in study.LABELS}
    return made | {"sft+lead": outcome("sft+lead", lead, lead_length)}


@pytest.mark.parametrize(
    ("right", "length", "found"),
    [
        (1.0, 39.0, study.borne(True)),
        (0.99, 39.0, study.borne(True)),
        (1.0, 41.0, study.borne(False)),
        (0.85, 30.0, study.borne(False)),
    ],
)
def test_lead_must_shorten_by_a_fifth_and_provably_lose_less_than_five_points(
    right: float, length: float, found: str
) -> None:
    said = study.findings(outcomes(right, length))[1]
    assert said.startswith("(b)") and f"length by {2 * length - 100:+.0f} %" in said
    assert f"points. {found} As many" in said


def test_a_wide_interval_of_the_accuracy_decides_nothing() -> None:
    wide = Interval(-0.03, -0.1, 0.04, None, None)
    assert study.equal_and_shorter(0.3, wide) == study.OPEN
    assert study.equal_and_shorter(0.1, wide) == study.borne(False)
    assert study.equal_and_shorter(0.3, replace(wide, high=-0.01)) == study.borne(False)


def test_equal_models_bear_out_no_gain() -> None:
    first, _, third, last = study.findings(outcomes(1.0, 39.0))
    assert all(study.borne(False) in line for line in (first, third, last))


def test_the_section_names_its_seeds_and_those_of_the_settings() -> None:
    said = study.report(list(outcomes(1.0, 39.0).values()), 12.0)
    assert "seeds 1, 2, 3, 4." in said and "0, 65, 66, 67" in said and "| SFT, then GRPO |" in said


def test_a_pipeline_that_failed_everywhere_is_named() -> None:
    made = outcomes(1.0, 39.0)
    made["rl"] = replace(made["rl"], seeds=(), costs=(), failures={1: "it diverged"})
    with pytest.raises(DataError, match=r"sft and rl.*1: it diverged"):
        study.findings(made)


def test_seeds_of_the_report_chose_no_setting() -> None:
    assert not set(study.SEEDS) & {*study.DEVELOPMENT, 1, 2, 3, 11, 12, 13}
    with pytest.raises(SystemExit):
        study.main(["--development", "--write"])
