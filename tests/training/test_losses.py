"""Chunked losses against torch's own, in value, in gradient and in what must not change them."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from curation.errors import DataError
from training.distillation import linear_forward_kl, linear_jensen_shannon, linear_reverse_kl
from training.losses import linear_cross_entropy, linear_logprobs, plain_cross_entropy

N, D, V = 9, 5, 11
REDUCTIONS = ("sum", "mean", "none")


def problem(dtype=torch.float64, seed=0, ignored=(2, 8)):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[list(ignored)] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_cross_entropy_is_torchs(reduction, chunk):
    hidden, weight, labels = problem()
    ours = linear_cross_entropy(hidden, weight, labels, chunk=chunk, reduction=reduction)
    theirs = F.cross_entropy(hidden @ weight.T, labels, reduction=reduction)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(plain_cross_entropy(hidden, weight, labels, reduction=reduction), theirs)
    scale = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    gradients = torch.autograd.grad((ours * scale).sum(), (hidden, weight))
    expected = torch.autograd.grad((theirs * scale).sum(), (hidden, weight))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_with_z_loss(reduction):
    hidden, weight, labels = problem()

    def ours(h, w):
        return linear_cross_entropy(h, w, labels, chunk=4, z_loss=0.1, reduction=reduction)

    assert gradcheck(ours, (hidden, weight))
    plain = plain_cross_entropy(hidden, weight, labels, z_loss=0.1, reduction=reduction)
    torch.testing.assert_close(ours(hidden, weight), plain)
    logits = hidden @ weight.T
    penalty = 0.1 * logits.logsumexp(-1).square() * (labels >= 0)
    expected = F.cross_entropy(logits, labels, reduction="none") + penalty
    if reduction != "none":
        expected = expected.sum() / ((labels >= 0).sum() if reduction == "mean" else 1)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropy(temperature):
    hidden, weight, labels = problem()

    def ours(h, w):
        return linear_logprobs(h, w, labels, temperature=temperature, chunk=2)

    logp, entropy = ours(hidden, weight)
    distribution = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    valid = labels >= 0
    torch.testing.assert_close(logp, distribution.log_prob(labels.clamp(min=0)) * valid)
    torch.testing.assert_close(entropy, distribution.entropy() * valid)
    assert gradcheck(ours, (hidden, weight))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    chunk=st.integers(1, 12),
    dropped=st.sets(st.integers(0, N - 1), max_size=N - 1),
    order=st.permutations(range(N)),
    shift=st.floats(-50, 50),
)
def test_nothing_but_the_labelled_tokens_matters(seed, chunk, dropped, order, shift):
    """Chunk size, order, padding and a constant added to all logits change neither loss nor gradients."""
    hidden, weight, labels = problem(seed=seed, ignored=sorted(dropped))
    total = linear_cross_entropy(hidden, weight, labels)
    gradients = torch.autograd.grad(total, (hidden, weight))
    again = linear_cross_entropy(hidden[order], weight, labels[list(order)], chunk=chunk)
    torch.testing.assert_close(again, total)
    torch.testing.assert_close(torch.autograd.grad(again, (hidden, weight)), gradients)
    kept = labels >= 0
    torch.testing.assert_close(linear_cross_entropy(hidden[kept], weight, labels[kept], chunk=chunk), total)
    # a column of ones in the states and of `shift` in the weight adds `shift` to every logit
    wider = torch.cat((hidden, torch.ones(N, 1, dtype=hidden.dtype)), 1)
    lifted = torch.cat((weight, torch.full((V, 1), shift, dtype=weight.dtype)), 1)
    torch.testing.assert_close(linear_cross_entropy(wider, lifted, labels, chunk=chunk), total)
    each = linear_cross_entropy(hidden, weight, labels, chunk=chunk, reduction="none")
    torch.testing.assert_close(each.sum(), total)
    assert (each[~kept] == 0).all()
    logp, entropy = linear_logprobs(hidden, weight, labels, chunk=chunk)
    torch.testing.assert_close(-logp, each)
    assert (entropy >= 0).all() and (entropy <= math.log(V) + 1e-9).all()


def test_all_ignored():
    hidden, weight, labels = problem(ignored=range(N))
    with pytest.raises(DataError, match="Every label"):
        linear_cross_entropy(hidden, weight, labels, reduction="mean")
    total = linear_cross_entropy(hidden, weight, labels)
    assert total.item() == 0
    gradients = torch.autograd.grad(total, (hidden, weight))
    assert all((g == 0).all() for g in gradients)
    assert linear_cross_entropy(hidden, weight, labels, reduction="none").tolist() == [0.0] * N


@pytest.mark.parametrize("label", [V, -1])
def test_a_label_outside_the_vocabulary_is_a_sentence(label):
    hidden, weight, labels = problem()
    labels[4] = label
    for loss in (linear_cross_entropy, linear_logprobs):
        with pytest.raises(DataError, match=f"label is {label}, but the model has {V} tokens"):
            loss(hidden, weight, labels)


def test_only_the_gradients_asked_for():
    hidden, weight, labels = problem()
    frozen = weight.detach()
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, frozen, labels), hidden)
    (expected,) = torch.autograd.grad(F.cross_entropy(hidden @ frozen.T, labels, reduction="sum"), hidden)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, labels).requires_grad


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_bfloat16_autocast_accumulates_in_float32(reduction):
    """Many tokens in many chunks: the sum does not drift as a bfloat16 sum would."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 32, generator=generator).requires_grad_()
    weight = (torch.randn(300, 32, generator=generator) / 6).requires_grad_()
    labels = torch.randint(0, 300, (2048,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, chunk=32, reduction=reduction).sum()
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert loss.dtype == torch.float32
    assert abs(loss.item() / exact.item() - 1) < 1e-4
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(gradients, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() / theirs.norm() < 5e-3


def _reference(kind, student, teacher, beta):
    def kl(of, to):  # KL(of || to) per token, by torch
        return F.kl_div(to, of, log_target=True, reduction="none").sum(-1)

    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    middle = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
def test_distances_to_a_teacher_are_torchs_kl_div(kind, reduction):
    hidden, weight, labels = problem()
    generator = torch.Generator().manual_seed(7)
    taught, head = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (N, V))
    beta, temperature = 0.3, 1.7
    loss = {
        "forward": linear_forward_kl,
        "reverse": linear_reverse_kl,
        "jensen_shannon": lambda *a, **k: linear_jensen_shannon(*a, beta=beta, **k),
    }[kind]

    def ours(h, w):
        return loss(h, w, taught, head, labels, temperature=temperature, chunk=4, reduction=reduction)

    student = (hidden @ weight.T / temperature).log_softmax(-1)
    teacher = (taught @ head.T / temperature).log_softmax(-1)
    expected = _reference(kind, student, teacher, beta) * (labels >= 0)
    if reduction != "none":
        expected = expected.sum() / ((labels >= 0).sum() if reduction == "mean" else 1)
    torch.testing.assert_close(ours(hidden, weight), expected)
    assert gradcheck(ours, (hidden, weight))


def test_distances_to_oneself_are_zero_and_impossible_tokens_are_survived():
    hidden, weight, _ = problem(torch.float32)
    for loss in (linear_forward_kl, linear_reverse_kl, linear_jensen_shannon):
        same = loss(hidden, weight, hidden, weight)
        assert abs(same.item()) < 1e-5
        # logits 1000 apart: probabilities underflow to 0, and neither value nor gradient may become NaN
        value = loss(hidden * 1000, weight, -hidden * 1000, weight)
        gradient = torch.autograd.grad(value, (hidden, weight))
        assert value.isfinite() and all(g.isfinite().all() for g in gradient)
    with pytest.raises(DataError, match="11 tokens, its teacher 10"):
        linear_forward_kl(hidden, weight, hidden, weight[:10])
    with pytest.raises(DataError, match=r"weight is 1\.5"):
        linear_jensen_shannon(hidden, weight, hidden, weight, beta=1.5)
    with pytest.raises(DataError, match="Every label"):
        linear_reverse_kl(hidden, weight, hidden, weight, torch.full((N,), -100), reduction="mean")


def test_recomputed_gradients_have_the_precision_of_the_forward():
    """The backward of "none", run outside autocast, makes the bfloat16 products that "sum" made inside."""
    hidden, weight, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        at_once = linear_cross_entropy(hidden, weight, labels, chunk=4)
        each = linear_cross_entropy(hidden, weight, labels, chunk=4, reduction="none")
    expected = torch.autograd.grad(at_once, (hidden, weight))
    for ours, theirs in zip(torch.autograd.grad(each.sum(), (hidden, weight)), expected, strict=True):
        assert torch.equal(ours, theirs)
    exact = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), hidden)[0]
    assert not torch.equal(exact, expected[0])


@settings(max_examples=20, deadline=None)
@given(v=st.integers(1, 5), seed=st.integers(0, 1000))
def test_any_size(v, seed):
    """One token of vocabulary costs nothing; an empty batch is an empty sum."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(seed % 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, v, (len(hidden),), generator=generator)
    for reduction in ("sum", "none"):
        ours = linear_cross_entropy(hidden, weight, labels, chunk=2, reduction=reduction)
        theirs = F.cross_entropy(hidden @ weight.T, labels, reduction=reduction)
        torch.testing.assert_close(ours, theirs)
        gradients = torch.autograd.grad(ours.sum(), (hidden, weight))
        torch.testing.assert_close(gradients, torch.autograd.grad(theirs.sum(), (hidden, weight)))
    if v == 1:
        assert ours.abs().sum() < 1e-12


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("tokens", [64, 256])
def test_no_tensor_is_ever_larger_than_a_chunk_of_logits(tokens):
    vocabulary, width, chunk = 300, 4, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.arange(tokens) % vocabulary
    for loss in (
        lambda: linear_cross_entropy(hidden, weight, labels, chunk=chunk),
        lambda: linear_cross_entropy(hidden, weight, labels, chunk=chunk, reduction="none").sum(),
        lambda: sum(x.sum() for x in linear_logprobs(hidden, weight, labels, chunk=chunk)),
        lambda: linear_forward_kl(hidden, weight, hidden, weight, chunk=chunk),
        lambda: linear_jensen_shannon(hidden, weight, hidden, weight, chunk=chunk, reduction="none").sum(),
    ):
        with _Largest() as seen:
            loss().backward()
        assert 0 < seen.numbers <= vocabulary * chunk
