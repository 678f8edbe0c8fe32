"""Advantages: the published vectors, identities between estimators, and groups that must not train."""

import doctest
import math

import pytest
import torch

import training.advantages
from curation.errors import DataError, RecipeError
from training.advantages import (
    LeadSettings,
    group_advantages,
    groups_kept,
    lead_rewards,
    lead_reweighted,
    lead_weight,
    rloo_advantages,
    soft_overlong_punishment,
)


def test_examples_in_docstrings():
    result = doctest.testmod(training.advantages)
    assert result.attempted and not result.failed


def close(values, expected, tolerance=1e-6):
    torch.testing.assert_close(values, torch.as_tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def test_lead_rewards_and_advantages_of_the_published_vector():
    rewards = lead_rewards(torch.tensor([[True, True, True, False]]), torch.tensor([[100, 200, 300, 50]]))
    close(rewards, [[1.051271, 1.0, 0.951229, -1.0]])
    close(group_advantages(rewards), [[0.550646, 0.499375, 0.450604, -1.500625]])


def test_lead_weight_in_both_readings():
    close(
        lead_weight(torch.tensor([0, 0.25, 0.5, 0.75, 0.8, 1])),
        [1.4994, 1.4926, 1.4166, 0.95, 0.8153, 0.4834],
        5e-5,
    )
    ceiling = LeadSettings(k2_reading="ceiling")
    close(lead_weight(torch.tensor([0.75, 0.25]), ceiling), [0.75, 1.095315])


def test_lead_edge_cases():
    one = torch.tensor([[1, 0, 0, 0]]).bool()
    lengths = torch.tensor([[70, 10, 20, 30]])
    assert lead_rewards(one, lengths)[0, 0] == 1  # one right answer: z = 0
    close(
        lead_reweighted(group_advantages(lead_rewards(one, lengths)), one),
        [[2.239, -0.475, -0.475, -0.475]],
        5e-4,
    )
    none = torch.zeros(1, 4).bool()
    assert group_advantages(lead_rewards(none, lengths)).abs().max() == 0
    equal = lead_rewards(torch.ones(1, 3).bool(), torch.full((1, 3), 10_000_019))
    assert (equal == 1).all()  # equal lengths: exactly 1, whatever the rounding of the mean
    both = torch.ones(1, 2).bool()
    advantages = lead_reweighted(group_advantages(lead_rewards(both, torch.tensor([[100, 300]]))), both)
    assert advantages[0, 0] > 0 > advantages[0, 1] and advantages.sum() < 0 and advantages.abs().max() < 0.06
    zero = lead_rewards(one, lengths, LeadSettings(wrong_reward=0.0))
    assert zero.tolist() == [[1, 0, 0, 0]]
    # population deviation: 81.65 instead of 100
    population = lead_rewards(
        both[:, :1].expand(1, 3), torch.tensor([[100, 200, 300]]), LeadSettings(deviation="population")
    )
    assert math.isclose(population[0, 0], math.exp(0.05 * 100 / 81.64966), rel_tol=1e-6)


def test_a_right_answer_never_falls_below_a_wrong_one():
    lengths = torch.tensor([[10] * 12 + [4096]])
    rewards = lead_rewards(torch.ones(1, 13).bool(), lengths)
    largest_z = 12 / math.sqrt(13)  # of 13 numbers
    assert rewards.min().item() == pytest.approx(math.exp(-0.05 * largest_z), rel=1e-6)
    mirrored = lead_rewards(torch.ones(1, 13).bool(), 4106 - lengths)
    assert mirrored.max().item() == pytest.approx(math.exp(0.05 * largest_z), rel=1e-6)


def test_rloo_is_the_centred_reward_times_g_over_g_minus_1():
    rewards = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        rloo_advantages(rewards), 7 / 6 * group_advantages(rewards), atol=1e-14, rtol=0
    )


def test_scales():
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]])
    sample = group_advantages(rewards, scale="group", epsilon=1e-12)
    close(sample[0], [0.8660254, -0.8660254, -0.8660254, 0.8660254])
    close(
        group_advantages(rewards, scale="group", deviation="population", epsilon=1e-12)[0], [1.0, -1, -1, 1]
    )
    assert (sample[1] == 0).all()
    # equal rewards that binary floats cannot hold stay exactly without advantage under a deviation
    odd = group_advantages(torch.full((1, 3), 0.1, dtype=torch.float64), scale="group", epsilon=1e-20)
    assert (odd == 0).all()
    batch = group_advantages(rewards, scale="batch", epsilon=1e-12)
    close(batch[0, 0], 0.5 / rewards.double().std())


def test_truncated_rollouts_may_be_left_out_of_the_baseline():
    rewards = torch.tensor([[1.0, 0.0, 0.0]])
    counted = torch.tensor([[True, True, False]])
    close(group_advantages(rewards, counted), [[0.5, -0.5, -0.5]])
    close(rloo_advantages(rewards, counted), [[1.0, -1.0, -0.5]])
    assert (group_advantages(rewards, torch.zeros(1, 3).bool()) == 0).all()
    assert (rloo_advantages(rewards, torch.zeros(1, 3).bool()) == 0).all()


def test_groups_are_kept_on_the_outcome_not_on_the_shaped_reward():
    correct = torch.tensor([[1, 1], [1, 0], [0, 0]])
    assert groups_kept(correct).tolist() == [False, True, False]
    assert groups_kept(correct, keep="any_correct").tolist() == [True, True, False]
    assert groups_kept(correct, keep="all").tolist() == [True, True, True]
    assert groups_kept(correct, torch.tensor([[1, 1], [1, 0], [1, 1]])).tolist() == [False, False, False]


def test_soft_overlong_punishment_of_dapo():
    lengths = torch.tensor([16384, 16385, 18432, 20480, 20481])
    close(soft_overlong_punishment(lengths, 20480, 4096), [0, -1 / 4096, -0.5, -1, -1])
    with pytest.raises(RecipeError):
        soft_overlong_punishment(lengths, 100, 200)


def test_bad_groups_are_refused():
    with pytest.raises(RecipeError, match="group of one"):
        group_advantages(torch.tensor([[1.0]]))
    with pytest.raises(DataError, match="group 1, replica 0"):
        group_advantages(torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]))
