"""The loss: identities, hand-made clips, and invariance of loss and gradient to how an update is cut."""

import doctest
import itertools

import pytest
import torch

import training.advantages
import training.grpo_loss
import training.surrogates
from curation.errors import RecipeError
from training.grpo_loss import policy_loss, rollout_weights
from training.surrogates import Surrogate

NORMALISATIONS = ("grpo", "bnpo", "dapo", "dr_grpo", "luspo")


CLIP = Surrogate(low=0.2, high=0.2)
SURROGATES = [
    CLIP,
    Surrogate(low=0.2, high=0.2, ratio="sequence"),
    Surrogate("cispo", high=0.1),
    Surrogate("sapo"),
    Surrogate("sapo", ratio="sequence"),
    Surrogate("vespo"),
]


@pytest.mark.parametrize("module", [training.grpo_loss, training.surrogates])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def weights_of(name, tokens, **more):
    return rollout_weights(tokens, name, constant=10, batch_rollouts=2, **more)


def test_weights_by_hand():
    tokens = torch.tensor([1, 3, 0, 4])
    before = torch.tensor([1, 3, 8, 4])
    kept = {
        "grpo": [1 / 3, 1 / 9, 0, 1 / 12],
        "dapo": [1 / 8, 1 / 8, 0, 1 / 8],
        "dr_grpo": [1 / 30, 1 / 30, 0, 1 / 30],
        "bnpo": [1 / 8, 1 / 8, 0, 1 / 8],
        "luspo": [1 / 3, 1 / 3, 0, 1 / 3],
    }
    everything = {
        "grpo": [1 / 4, 1 / 12, 0, 1 / 16],
        "dapo": [1 / 16, 1 / 16, 0, 1 / 16],
        "dr_grpo": [1 / 40, 1 / 40, 0, 1 / 40],
        "bnpo": [1 / 8, 1 / 8, 0, 1 / 24],
        "luspo": [1 / 4, 1 / 4, 0, 1 / 4],
    }
    for name in NORMALISATIONS:
        torch.testing.assert_close(weights_of(name, tokens), torch.tensor(kept[name], dtype=torch.float64))
        found = weights_of(name, tokens, tokens_unfiltered=before, denominator="all")
        torch.testing.assert_close(found, torch.tensor(everything[name], dtype=torch.float64))
    with pytest.raises(RecipeError, match="constant"):
        rollout_weights(tokens, "dr_grpo")
    with pytest.raises(RecipeError, match="dapo"):
        rollout_weights(tokens, "mean")


class Policy(torch.nn.Module):
    """A float64 bigram model: each row's log-probabilities depend on that row alone."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(
            torch.randn(11, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        )

    def forward(self, ids):
        return self.table.log_softmax(-1)[ids[:, :-1], ids[:, 1:]]


def update(name, pieces, pad_left, pad_right, *, on_policy, surrogate=CLIP):
    """Loss and gradient of one fixed update of 8 rollouts, cut into `pieces` and padded."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.tensor([3, 1, 7, 5, 2, 6, 4, 3])
    rows = [torch.randint(0, 11, (int(n) + 1,), generator=generator) for n in lengths]
    old = [torch.randn(int(n), dtype=torch.float64, generator=generator) * 0.3 for n in lengths]
    advantages = torch.randn(8, dtype=torch.float64, generator=generator)
    tokens = lengths.clone()
    tokens[3] = 0  # overlong, filtered
    weights = weights_of(name, tokens, tokens_unfiltered=lengths)
    policy = Policy()
    total = 0.0
    for piece in pieces:
        width = int(lengths[piece].max()) + pad_left + pad_right
        ids = torch.randint(0, 11, (len(piece), width + 1), generator=generator)
        mask = torch.zeros(len(piece), width, dtype=torch.bool)
        before = torch.full((len(piece), width), float("nan"), dtype=torch.float64)
        for at, row in enumerate(piece):
            stop = pad_left + int(lengths[row])
            ids[at, pad_left : stop + 1] = rows[row]
            mask[at, pad_left:stop] = tokens[row] > 0
            logprobs = Policy()(rows[row][None])[0].detach()
            before[at, pad_left:stop] = logprobs + old[row]
        part = policy_loss(
            policy(ids), advantages[piece], mask, weights[piece],
            old_logprobs=None if on_policy else before, surrogate=surrogate,
            reference_logprobs=torch.where(mask, before, 0.0), kl_coefficient=0.1,
        )  # fmt: skip
        part.loss.backward()
        total += float(part.loss.detach())
    return total, policy.table.grad


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("on_policy", [True, False])
def test_loss_and_gradient_do_not_depend_on_how_the_update_is_cut(name, on_policy):
    whole, gradient = update(name, [list(range(8))], 0, 0, on_policy=on_policy)
    cuts = [[[i] for i in range(8)], [[7, 2, 0], [1, 6], [5, 4, 3]], [[6, 7], [4, 5], [2, 3], [0, 1]]]
    for cut, (left, right) in itertools.product(cuts, [(0, 0), (2, 0), (0, 3)]):
        loss, other = update(name, cut, left, right, on_policy=on_policy)
        assert loss == pytest.approx(whole, rel=1e-12, abs=1e-15)
        torch.testing.assert_close(other, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("surrogate", SURROGATES[1:])
def test_no_surrogate_depends_on_how_the_update_is_cut(surrogate):
    whole, gradient = update("dapo", [list(range(8))], 0, 0, on_policy=False, surrogate=surrogate)
    for cut, (left, right) in itertools.product([[[7, 2, 0], [1, 6], [5, 4, 3]]], [(0, 0), (2, 3)]):
        loss, other = update("dapo", cut, left, right, on_policy=False, surrogate=surrogate)
        assert loss == pytest.approx(whole, rel=1e-12, abs=1e-15)
        torch.testing.assert_close(other, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(surrogate):
    plain = update("dr_grpo", [list(range(8))], 0, 0, on_policy=True, surrogate=Surrogate())[1]
    found = update("dr_grpo", [list(range(8))], 0, 0, on_policy=True, surrogate=surrogate)[1]
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-14)


def test_impossible_surrogates_are_refused():
    for wrong in ({"name": "ppo"}, {"ratio": "word"}, {"name": "vespo", "ratio": "sequence"},
                  {"high": 0.2, "cap": 1.1}, {"sapo_negative": 0.0}):  # fmt: skip
        with pytest.raises(RecipeError):
            Surrogate(**wrong)


def gradient_of(ratio, advantage, low=0.2, high=0.28):
    logprobs = torch.tensor([[0.0]], dtype=torch.float64, requires_grad=True)
    old = -torch.log(torch.tensor([[ratio]], dtype=torch.float64))
    part = policy_loss(
        logprobs, torch.tensor([advantage]).double(), torch.ones(1, 1).bool(), torch.ones(1).double(),
        old_logprobs=old, surrogate=Surrogate(low=low, high=high),
    )  # fmt: skip
    part.loss.backward()
    return float(logprobs.grad), part.clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [
        (0.7, 1, 0),
        (1.0, 1, 0),
        (1.27, 1, 0),
        (1.3, 1, 1),
        (0.7, -1, 1),
        (0.81, -1, 0),
        (1.0, -1, 0),
        (1.3, -1, 0),
    ],
)
def test_truth_table_of_the_clip(ratio, advantage, clipped):
    gradient, count = gradient_of(ratio, float(advantage))
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage) and count == clipped


def test_on_policy_gradient_is_that_of_reinforce():
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    mask = torch.ones(4, 5, dtype=torch.bool)
    weights = rollout_weights(mask.sum(1), "dr_grpo", constant=5)
    policy, reinforce = Policy(), Policy()
    policy_loss(policy(ids), advantages, mask, weights, surrogate=CLIP).loss.backward()
    (-(reinforce(ids).sum(1) * advantages).sum() / (4 * 5)).backward()
    torch.testing.assert_close(policy.table.grad, reinforce.table.grad, rtol=1e-13, atol=1e-16)


def test_k3_estimates_the_divergence_and_has_its_gradient():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    reference = torch.randn(1, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    # every token once, weighted by its probability: the expectation of k3 under the policy
    part = policy_loss(
        logprobs.T, torch.zeros(5).double(), torch.ones(5, 1).bool(), logprobs.exp()[0].detach(),
        reference_logprobs=reference.T, kl_coefficient=1.0,
    )  # fmt: skip
    assert part.loss.item() == pytest.approx(exact.item())


def test_monte_carlo_gradient_of_a_bandit_meets_the_exact_expectation():
    """One step, 4 arms: the mean of GRPO's gradient over groups, times G / (G - 1), is d E[r] / d logits."""
    logits = torch.tensor([0.5, -0.3, 0.1, 0.0], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.3, -0.5], dtype=torch.float64)
    probabilities = logits.softmax(-1)
    exact = probabilities * (rewards - (probabilities * rewards).sum())
    groups, size = 20_000, 4
    arms = torch.multinomial(probabilities, groups * size, True, generator=torch.Generator().manual_seed(6))
    table = logits.clone().requires_grad_()
    advantages = training.advantages.group_advantages(rewards[arms].view(groups, size)).reshape(-1)
    chosen = table.log_softmax(-1)[arms][:, None]
    mask = torch.ones_like(chosen, dtype=torch.bool)
    weights = rollout_weights(mask.sum(1), "dr_grpo", constant=1)
    policy_loss(chosen, advantages, mask, weights).loss.backward()
    estimate = -table.grad * size / (size - 1)
    # each component's standard error is below 0.6 / sqrt(80 000) = 0.002
    torch.testing.assert_close(estimate, exact, rtol=0, atol=0.008)


def test_masked_entries_may_be_anything():
    logprobs = torch.tensor([[-1.0, float("-inf"), float("nan")]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    part = policy_loss(
        logprobs, torch.ones(1).double(), mask, torch.ones(1).double(), reference_logprobs=logprobs.detach()
    )
    part.loss.backward()
    assert part.loss.isfinite() and logprobs.grad.tolist() == [[-1.0, 0.0, 0.0]]
