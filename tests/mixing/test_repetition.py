"""Repetition-matched sources: as many epochs in the proxy run as in the run that it stands for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from curation.errors import DataError, RecipeError
from mixing.proxy import ProxyRun, check_run, fingerprint_of, open_sources
from mixing.repetition import part_of_source
from tests.mixing.worlds import make_settings
from training.order import DataOrder, MixtureSchedule, Phase
from training.tokens import TokenSource


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory):
    return make_settings(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def source(settings) -> TokenSource:
    return TokenSource.open(settings.tokens["wiki"])


def test_a_part_is_made_of_whole_documents_in_their_order(source: TokenSource) -> None:
    part = part_of_source(source, 0.4)
    every = {source.ids[i]: source.document(i).tolist() for i in range(len(source.ids))}
    names = part.ids[:]
    assert names == [name for name in source.ids[:] if name in set(names)]
    assert [part.document(i).tolist() for i in range(len(names))] == [every[name] for name in names]
    longest = int(np.diff(source.offsets).max())
    assert abs(part.total_tokens - 0.4 * source.total_tokens) <= longest / 2
    assert len(part.text_bytes) == len(names) and part.hash != source.hash
    assert part_of_source(source, 0.4).hash == part.hash
    assert part_of_source(source, 1.0) is source


def test_smaller_parts_lie_inside_larger_ones(source: TokenSource) -> None:
    parts = [set(part_of_source(source, share).ids[:]) for share in (0.1, 0.3, 0.7, 0.95)]
    assert parts[0] and all(small < large for small, large in itertools.pairwise(parts))


def test_a_share_without_a_document_is_a_sentence(source: TokenSource) -> None:
    with pytest.raises(DataError, match="less than half a document"):
        part_of_source(source, 1e-4)


def test_epochs_of_a_proxy_run_are_those_of_its_target(settings) -> None:
    """Ten times the tokens on ten times the data: what a mixture repeats there, it repeats here."""
    weights = {"code": 0.1, "wiki": 0.3, "noise": 0.6}
    matched = replace(settings, target_tokens=2 * settings.run_tokens)
    assert matched.source_share == 0.5
    run = ProxyRun("r", weights, seed=1)

    def epochs(sources: dict[str, TokenSource], sequences: int) -> dict[str, float]:
        order = DataOrder(MixtureSchedule((Phase("p", sequences, weights),), seed=1, block=20), sources, 32)
        return {name: order.epochs(name) for name in weights}

    target = epochs({name: TokenSource.open(folder) for name, folder in settings.tokens.items()}, 80)
    proxy = epochs(open_sources(run, matched), 40)
    for name in weights:
        # The part is a whole number of documents, at most half of one away from its size.
        assert proxy[name] == pytest.approx(target[name], rel=0.1)
    inputs = settings.inputs()
    assert fingerprint_of(run, settings, inputs) != fingerprint_of(run, matched, inputs)


def test_runs_longer_than_their_target_are_refused(settings) -> None:
    short = replace(settings, target_tokens=settings.run_tokens - 1)
    with pytest.raises(RecipeError, match="more than the 767 that they stand for"):
        check_run(ProxyRun("r", {"code": 0.5, "wiki": 0.5}, seed=1), short)
