"""Learning-rate schedules: their ends, their shape, and that they never make an idle update."""

import pytest

from curation.errors import RecipeError
from training.schedules import SCHEDULES, RatePhase, check_phases, phased_rate, rate_factor


def rates(schedule, steps=100, warmup_steps=10):
    return [rate_factor(schedule, s, steps=steps, warmup_steps=warmup_steps) for s in range(steps)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (1, 0), (2, 1), (7, 6)])
def test_all_rise_to_one_then_never_rise_again_and_are_never_zero(schedule, steps, warmup):
    found = rates(schedule, steps, warmup)
    assert max(found) == 1.0 and min(found) > 0
    assert found[:warmup] == sorted(found[:warmup])
    assert found[max(warmup - 1, 0) :] == sorted(found[max(warmup - 1, 0) :], reverse=True)


def test_warm_up_is_linear():
    assert rates("constant")[:10] == pytest.approx([0.1 * i for i in range(1, 11)])


def test_where_they_end():
    # One more step would give the figure that names the schedule.
    assert rates("linear_to_tenth")[-1] == pytest.approx(0.1 + 0.9 / 90)
    assert rates("linear_to_zero")[-1] == pytest.approx(1 / 90)
    assert rates("cosine")[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates("constant")[-1] == 1.0
    assert rates("wsd")[79:82] == pytest.approx([1, 1, 1 - (1 / 20) ** 0.5])
    assert rates("wsd")[-1] == pytest.approx(1 - (19 / 20) ** 0.5)


def test_half_way():
    assert rates("linear_to_tenth")[55] == pytest.approx(0.55) == rates("cosine")[55]
    assert rates("linear_to_zero")[55] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup"), [("linear", 9, 1), ("cosine", 9, 9), ("cosine", 0, 0)]
)
def test_what_cannot_be_is_a_recipe_error(schedule, steps, warmup):
    with pytest.raises(RecipeError):
        rate_factor(schedule, 0, steps=steps, warmup_steps=warmup)


def test_each_phase_begins_and_ends_as_its_schedule_does():
    phases = (RatePhase(10, 1.0, "linear_to_tenth", 2), RatePhase(4, 0.5, "linear_to_zero"))
    found = [phased_rate(phases, step) for step in range(14)]
    first = [0.5, 1.0] + [1 - 0.9 * k / 8 for k in range(8)]
    assert found == pytest.approx([*first, 0.5, 0.375, 0.25, 0.125])
    with pytest.raises(RecipeError, match="no learning rate for step 14"):
        phased_rate(phases, 14)


@pytest.mark.parametrize(
    ("phase", "steps", "sentence"),
    [
        (RatePhase(5, 1.0, "constant"), 6, "have 5 steps, and the run 6"),
        (RatePhase(5, 0.0, "constant"), 5, "learning rate of phase 0 is 0"),
        (RatePhase(5, 1.0, "constant", 5), 5, "warm-up"),
        (RatePhase(5, 1.0, "linear"), 5, "no learning-rate schedule"),
    ],
)
def test_phases_that_cannot_be_are_recipe_errors(phase, steps, sentence):
    with pytest.raises(RecipeError, match=sentence):
        check_phases([phase], steps)


def test_post_training_decays_no_weights():
    from training.grpo_settings import GrpoSettings
    from training.sft import SftSettings

    assert SftSettings().weight_decay == 0 and SftSettings().train_settings(10).weight_decay == 0
    assert GrpoSettings().weight_decay == 0
