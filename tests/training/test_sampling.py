"""The sampler: exact against its distribution, blind to its batch, never on a token of probability zero."""

import doctest
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import training.sampling
from curation.errors import DataError
from training.sampling import UniformStreams, choose_tokens, inverse_cdf, uniform_block


def test_examples_in_docstrings():
    result = doctest.testmod(training.sampling)
    assert result.attempted and not result.failed


def test_inverse_cdf_on_a_fine_grid_has_exactly_the_probabilities():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0], dtype=torch.float64)
    grid = (torch.arange(800, dtype=torch.float64)) / 800
    counts = torch.bincount(inverse_cdf(probabilities.expand(800, -1), grid), minlength=7)
    assert counts.tolist() == [0, 200, 0, 400, 100, 100, 0]


def test_the_ends_of_the_interval_never_choose_a_token_of_probability_zero():
    for scale in (1.0, 3.7e-300, 0.1, 1e300):
        rows = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.0]], dtype=torch.float64) * scale
        for u, token in ((0.0, 1), (float(np.nextafter(1.0, 0.0)), 3), (1.0, 3)):
            assert inverse_cdf(rows, torch.tensor([u])).tolist() == [token]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_chi_square_of_the_sampler(temperature):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 20, generator=generator)
    draws = 20_000
    streams = UniformStreams(3, 0, [(0, replica) for replica in range(100)])
    uniforms = torch.cat([streams.at(position) for position in range(draws // 100)])
    tokens, _ = choose_tokens(logits.expand(draws, -1), uniforms, temperature=temperature)
    expected = (logits[0].double() / temperature).softmax(-1) * draws
    statistic = ((torch.bincount(tokens, minlength=20) - expected) ** 2 / expected).sum().item()
    assert chi2.sf(statistic, 19) > 1e-4


def test_top_p_keeps_the_fewest_tokens_that_hold_it():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None].expand(1000, -1)
    uniforms = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    tokens, normaliser = choose_tokens(logits, uniforms, top_p=0.65)
    counts = Counter(tokens.tolist())
    assert set(counts) == {0, 1} and abs(counts[0] / 1000 - 4 / 7) < 0.002
    assert (logits[0, 3] - normaliser[0]).exp() == pytest.approx(0.1)  # of the policy, before the cut


def test_greedy_takes_the_smallest_of_equals():
    logits = torch.tensor([[1.0, 3.0, 3.0]])
    tokens, normaliser = choose_tokens(logits, None, temperature=0)
    assert tokens.tolist() == [1] and (logits - normaliser).exp().sum() == pytest.approx(1)


def test_a_number_depends_on_its_place_alone():
    alone = UniformStreams(9, 2, [(5, 1)])
    beside = UniformStreams(9, 2, [(4, 0), (5, 1), (6, 3)])
    for position in (0, 1, 255, 256, 700):
        assert alone.at(position)[0] == beside.at(position)[1]
    beside.select([1])
    assert alone.at(701).tolist() == beside.at(701).tolist()
    others = [(9, 2, 5, 2), (9, 2, 6, 1), (9, 3, 5, 1), (8, 2, 5, 1)]
    here = uniform_block(9, 2, 5, 1, 0)
    assert all(not np.isin(here, uniform_block(*place, 0)).any() for place in others)
    assert not np.isin(here, uniform_block(9, 2, 5, 1, 1)).any()
    stream = np.concatenate([uniform_block(9, 2, 5, 1, block) for block in range(40)])
    assert abs(stream.mean() - 0.5) < 0.01 and 0 <= stream.min() < stream.max() < 1


def test_diverged_logits_are_refused():
    with pytest.raises(DataError, match="diverged"):
        choose_tokens(torch.tensor([[1.0, float("nan")]]), None)


def test_the_search_in_blocks_is_the_plain_one():
    generator = torch.Generator().manual_seed(4)
    for vocabulary in (1, 63, 64, 65, 200, 1000):
        logits = 6 * torch.randn(300, vocabulary, generator=generator)
        logits[:, : vocabulary // 3] = -torch.inf  # whole blocks without probability
        uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
        uniforms[0], uniforms[1] = 0.0, float(np.nextafter(1.0, 0.0))
        tokens, normaliser = choose_tokens(logits, uniforms)
        masses = (logits - logits.amax(-1, keepdim=True)).exp()
        assert torch.equal(tokens, inverse_cdf(masses, uniforms))
        torch.testing.assert_close(normaliser, logits.logsumexp(-1))
