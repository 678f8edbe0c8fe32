"""The combined loss against torch, and sparse targets: unbiased by enumeration, exact where they are whole."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from curation.errors import DataError
from training.distillation import linear_distillation
from training.losses import linear_cross_entropy
from training.sparse_distillation import (
    SparseTargets,
    linear_sparse_distillation,
    multinomial_entries,
    sampled_entries,
    top_k_entries,
)

N, D, E, V = 9, 5, 4, 11


def problem(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=dtype, requires_grad=True) for n in (N, V))
    taught, head = (torch.randn(n, E, generator=generator, dtype=dtype) for n in (N, V))
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[[2, 8]] = -100
    return hidden, weight, labels, taught, head


def torchs(hidden, weight, labels, teacher, *, alpha, beta, temperature, direction="forward", z_loss=0.0):
    """The same total from F.cross_entropy and F.kl_div; `teacher` are its logits at temperature 1."""
    logits, counted = hidden @ weight.T, labels >= 0
    student, taught = ((x / temperature).log_softmax(-1) for x in (logits, teacher))
    if direction == "forward":
        each = F.kl_div(student, taught, log_target=True, reduction="none")
    elif direction == "reverse":
        each = F.kl_div(taught, student, log_target=True, reduction="none")
    else:
        middle = ((student.exp() + taught.exp()) / 2).log()
        each = sum(F.kl_div(middle, x, log_target=True, reduction="none") / 2 for x in (student, taught))
    divergence = (each.sum(-1) * counted).sum()
    hard = F.cross_entropy(logits, labels, reduction="sum")
    penalty = z_loss * (logits.logsumexp(-1).square() * counted).sum()
    return alpha * (hard + penalty) + beta * temperature**2 * divergence, hard, divergence


@pytest.mark.parametrize("direction", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize(
    ("alpha", "beta", "temperature", "z_loss"),
    [(0.0, 1.0, 1.0, 0.0), (0.4, 0.6, 1.0, 0.1), (0.5, 2.0, 1.7, 0.0), (0.3, 0.7, 0.5, 0.1)],
)
def test_the_combined_loss_is_torchs(direction, alpha, beta, temperature, z_loss):
    hidden, weight, labels, taught, head = problem()
    options = {
        "alpha": alpha,
        "beta": beta,
        "temperature": temperature,
        "direction": direction,
        "z_loss": z_loss,
    }
    ours = linear_distillation(hidden, weight, labels, taught, head, chunk=4, **options)
    theirs = torchs(hidden, weight, labels, taught @ head.T, **options)
    torch.testing.assert_close(tuple(ours), tuple(theirs))
    gradients = torch.autograd.grad(ours.total, (hidden, weight))
    torch.testing.assert_close(gradients, torch.autograd.grad(theirs[0], (hidden, weight)))
    with torch.no_grad():
        again = linear_distillation(hidden, weight, labels, taught, head, **options)
    torch.testing.assert_close(tuple(again), tuple(theirs))
    assert gradcheck(
        lambda h, w: linear_distillation(h, w, labels, taught, head, chunk=4, **options).total,
        (hidden, weight),
    )


def test_without_a_teacher_it_is_the_cross_entropy_and_its_bits_in_bfloat16():
    hidden, weight, labels, taught, head = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        both = linear_distillation(hidden, weight, labels, taught, head, alpha=1.0, beta=0.0)
        alone = linear_cross_entropy(hidden, weight, labels)
    assert both.total.dtype == torch.float32
    torch.testing.assert_close(both.total, alone)
    expected = torch.autograd.grad(alone, (hidden, weight))
    torch.testing.assert_close(
        torch.autograd.grad(both.total, (hidden, weight)), expected, rtol=1e-2, atol=1e-2
    )


def dense(ids, weights, vocabulary):
    return torch.zeros(len(ids), vocabulary, dtype=torch.float64).scatter_add_(1, ids, weights)


def expectation_over_one_uniform(p, entries):
    """Exact: the sample is constant between the points at which a token's turn begins or ends."""
    probabilities = p[None]
    grid = {0.0, 1.0}
    # candidate breakpoints: of every possible number of kept tokens, the borders of the pool
    order = p.argsort(descending=True)
    for kept in range(entries):
        pool = p.clone()
        pool[order[:kept]] = 0
        if pool.sum() > 0:
            grid |= set(((pool.cumsum(0) / pool.sum() * (entries - kept)) % 1.0).tolist())
    points = torch.tensor(sorted(grid), dtype=torch.float64)
    width, middle = points.diff(), (points[1:] + points[:-1]) / 2
    ids, weights = sampled_entries(probabilities.expand(len(middle), -1), entries, middle)
    samples = dense(ids, weights, len(p))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(middle), dtype=torch.float64))
    for row in ids.tolist():
        assert len(set(row)) == entries, "a token was drawn twice"
    return (samples * width[:, None]).sum(0), samples, width


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), entries=st.integers(1, 6), sharpness=st.sampled_from([0.1, 1.0, 4.0, 12.0])
)
def test_the_expected_sample_is_the_teachers_distribution_by_enumeration(seed, entries, sharpness):
    logits = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * sharpness
    p = logits.softmax(0)
    expected, _, _ = expectation_over_one_uniform(p, entries)
    torch.testing.assert_close(expected, p, rtol=0, atol=1e-12)


def test_the_expected_loss_and_gradient_are_those_of_the_whole_distribution():
    """By enumeration of every sample of three entries among 11 tokens, for every token at once."""
    hidden, weight, labels, taught, head = problem()
    options = {"alpha": 0.4, "beta": 0.6, "temperature": 1.3}
    full = linear_distillation(hidden, weight, labels, taught, head, **options)
    wanted = torch.autograd.grad(full.total, (hidden, weight))
    p = (taught @ head.T / 1.3).softmax(-1)
    entropy = -(p * p.log()).sum(-1)
    total, gradients = 0.0, [torch.zeros_like(hidden), torch.zeros_like(weight)]
    # the loss is a sum over tokens, so the expectation may be taken token by token
    for row in range(N):
        only = torch.full_like(labels, -100)
        only[row] = labels[row]
        _, samples, width = expectation_over_one_uniform(p[row], 3)
        for sample, chance in zip(samples, width, strict=True):
            ids = sample.nonzero()[:, 0][None].expand(N, -1)
            targets = SparseTargets("sampled", ids, sample[ids], entropy)
            loss = linear_sparse_distillation(hidden, weight, only, targets, **options).total
            total += loss.item() * chance.item()
            for sum_, part in zip(gradients, torch.autograd.grad(loss, (hidden, weight)), strict=True):
                sum_ += part * chance
    assert total == pytest.approx(full.total.item(), rel=1e-10)
    torch.testing.assert_close(tuple(gradients), wanted, rtol=0, atol=1e-10)


def test_the_papers_sampling_is_unbiased_by_enumeration_and_ours_varies_less():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    # a draw is constant for uniforms within one token's share: enumerate all pairs of draws
    middles = p.cumsum(0) - p / 2
    pairs = list(itertools.product(range(4), repeat=2))
    uniform = torch.stack([middles[list(pair)] for pair in pairs])
    chance = torch.stack([p[a] * p[b] for a, b in pairs])
    ids, weights = multinomial_entries(p.expand(len(pairs), -1), 2, uniform)
    samples = dense(ids, weights, 4)
    torch.testing.assert_close((samples * chance[:, None]).sum(0), p)
    with_replacement = (samples.square() * chance[:, None]).sum(0) - p.square()
    _, ours, width = expectation_over_one_uniform(p, 2)
    without = (ours.square() * width[:, None]).sum(0) - p.square()
    assert (without <= with_replacement + 1e-12).all() and without.sum() < 0.5 * with_replacement.sum()


def test_monte_carlo_agrees_for_a_large_vocabulary():
    """50,000 samples of 12 among 1,000 tokens: within five standard errors wherever 20 draws are expected."""
    generator = torch.Generator().manual_seed(1)
    p = (torch.randn(1000, generator=generator, dtype=torch.float64) * 2).softmax(0)
    total, count = torch.zeros(1000, dtype=torch.float64), 50_000
    for _ in range(count // 1000):
        uniform = torch.rand(1000, generator=generator, dtype=torch.float64)
        ids, weights = sampled_entries(p.expand(1000, -1), 12, uniform)
        total += dense(ids, weights, 1000).sum(0)
    share = weights.min()  # the weight of every token that is drawn, rather than kept
    error = (p * (share - p).clamp(min=1e-12) / count).sqrt()
    often = (p * count / share > 20) & (p < share)
    assert often.sum() > 500
    assert ((total / count - p).abs() / error)[often].max() < 5
    kept = p >= share
    torch.testing.assert_close((total / count)[kept], p[kept])


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_with_entries_for_every_token_nothing_is_lost(kind, temperature):
    hidden, weight, labels, taught, head = problem()
    options = {"alpha": 0.4, "beta": 0.6, "temperature": temperature, "z_loss": 0.1}
    p = (taught @ head.T / temperature).softmax(-1)
    ids, weights = sampled_entries(p, V + 2, torch.zeros(N)) if kind == "sampled" else top_k_entries(p, V + 1)
    targets = SparseTargets(kind, ids, weights, -(p * p.log()).sum(-1))

    def ours(h, w):
        return linear_sparse_distillation(h, w, labels, targets, chunk=4, **options).total

    full = linear_distillation(hidden, weight, labels, taught, head, **options)
    torch.testing.assert_close(ours(hidden, weight), full.total)
    expected = torch.autograd.grad(full.total, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(ours(hidden, weight), (hidden, weight)), expected)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_tail_bucket_is_the_kl_of_the_coarser_distributions(temperature, alpha):
    hidden, weight, labels, taught, head = problem()
    p = (taught @ head.T / temperature).softmax(-1)
    ids, weights = top_k_entries(p, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(N, dtype=torch.float64))
    assert (ids[:, -1] == V).all()
    targets = SparseTargets("top_k", ids, weights, torch.zeros(N))

    def ours(h, w):
        return linear_sparse_distillation(
            h, w, labels, targets, alpha=alpha, beta=0.6, temperature=temperature, chunk=2
        )

    student = (hidden @ weight.T / temperature).softmax(-1)
    inside = student.gather(1, ids[:, :-1])
    coarse = torch.cat((inside, 1 - inside.sum(-1, keepdim=True)), 1)
    divergence = F.kl_div(coarse.log(), weights, reduction="none").sum(-1)[labels >= 0].sum()
    hard = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    found = ours(hidden, weight)
    torch.testing.assert_close(found.divergence, divergence.detach())
    torch.testing.assert_close(found.total, alpha * hard + 0.6 * temperature**2 * divergence)
    assert gradcheck(lambda h, w: ours(h, w).total, (hidden, weight))


def test_extreme_logits_stay_finite_and_other_vocabularies_are_refused():
    hidden, weight, labels, taught, head = problem(dtype=torch.float32)
    p = (taught @ head.T).softmax(-1)
    for kind, (ids, weights) in (
        ("sampled", sampled_entries(p, 3, torch.rand(N))),
        ("top_k", top_k_entries(p, 3)),
    ):
        targets = SparseTargets(kind, ids, weights.float(), torch.zeros(N))
        loss = linear_sparse_distillation(hidden * 1000, weight, labels, targets, alpha=0.5, beta=0.5)
        assert loss.total.isfinite()
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss.total, (hidden, weight)))
    with pytest.raises(DataError, match="11 tokens, its teacher 10"):
        linear_distillation(hidden, weight, labels, taught, head[:10], alpha=0.5, beta=0.5)


def test_a_distribution_with_one_token_or_zeros_is_sampled():
    p = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25]])
    for u in (0.0, 0.3, 0.999999999):
        ids, weights = sampled_entries(p, 2, torch.full((3,), u))
        found = dense(ids, weights, 4)
        assert (found[p == 0] == 0).all()
        torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))
