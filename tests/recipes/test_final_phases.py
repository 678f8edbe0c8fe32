"""The final training's phases: what they read, and the learning rates they may have of their own."""

import pytest

from recipes.final_settings import FinalPhase, FinalSettings
from recipes.stages.final import final_settings, phase_lengths


def settings(**second: object) -> FinalSettings:
    phases = [
        FinalPhase(name="pre", share=0.7, mixture="uniform"),
        FinalPhase(name="mid", share=0.3, mixture="uniform", **second),
    ]
    return FinalSettings(
        tokens=64 * 8 * 30, sequence_tokens=64, batch_sequences=8, warmup_share=0.1, phases=phases
    )


def test_lengths_sum_to_the_whole():
    assert phase_lengths(settings(), 30) == [21, 9]
    assert sum(phase_lengths(settings(), 37)) == 37


def test_one_schedule_spans_the_run_unless_a_phase_has_its_own():
    assert final_settings(settings()).rate_phases == ()
    assert final_settings(settings()).rate(29) == pytest.approx(4e-3 * (1 - 0.9 * 26 / 27))


def test_mid_training_goes_to_zero_from_its_own_peak():
    made = final_settings(settings(schedule="linear_to_zero", learning_rate=3.6e-4))
    assert [phase.steps for phase in made.rate_phases] == [21, 9]
    assert made.rate(0) == pytest.approx(4e-3 / 2) and made.rate(1) == pytest.approx(4e-3)
    assert made.rate(20) == pytest.approx(4e-3 * (1 - 0.9 * 18 / 19)), "ends near a tenth"
    assert made.rate(21) == pytest.approx(3.6e-4) and made.rate(29) == pytest.approx(3.6e-4 / 9)
    assert made.evaluate_steps[-1] == 30 and len(made.evaluate_steps) == 4
