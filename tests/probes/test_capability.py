"""Probes are held out, chosen by a hash, and never trained on."""

from __future__ import annotations

import pytest

from curation.documents import Document, document_id
from curation.errors import DataError, RecipeError
from probes.capability import build_probes, held_out_ids, read_probes, without_held_out, write_probes

CAPABILITIES = {"python": ("code",), "wiki": ("knowledge",), "qa": ("code", "knowledge"), "noise": ()}


def _source(name: str, count: int = 40) -> list[Document]:
    texts = [f"{name} text {i} " * (i + 1) for i in range(count)]
    return [Document(document_id(name, t), t, name) for t in texts]


REPRESENTATIVE = {name: _source(name) for name in CAPABILITIES}


def test_probes_are_unions_over_sources_of_a_share() -> None:
    probes = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.1, seed=0)
    assert set(probes) == {"code", "knowledge"}
    for documents in probes.values():
        assert len(documents) == 8 and len({d.source for d in documents}) == 2
        assert all(d.source != "noise" for d in documents)
    assert {d.id for d in probes["code"] if d.source == "qa"} == {
        d.id for d in probes["knowledge"] if d.source == "qa"
    }


def test_the_choice_depends_on_seed_and_id_alone() -> None:
    probes = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.1, seed=0)
    turned = {name: REPRESENTATIVE[name][::-1] for name in reversed(REPRESENTATIVE)}
    assert build_probes(turned, CAPABILITIES, share=0.1, seed=0) == probes
    fewer = build_probes({"python": REPRESENTATIVE["python"]}, {"python": ("code",)}, share=0.1, seed=0)
    assert fewer["code"] == [d for d in probes["code"] if d.source == "python"]
    assert held_out_ids(build_probes(REPRESENTATIVE, CAPABILITIES, share=0.1, seed=1)) != held_out_ids(probes)


def test_nothing_held_out_is_trained_on_not_even_under_another_id() -> None:
    probes = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.2, seed=0)
    copies = [Document(document_id("mirror", d.text), d.text, "mirror") for d in probes["code"]]
    everything = [d for documents in REPRESENTATIVE.values() for d in documents] + copies
    kept = list(without_held_out(everything, probes))
    assert not {d.id for d in kept} & held_out_ids(probes)
    assert not {d.text for d in kept} & {d.text for d in probes["code"]}
    assert len(kept) == len(everything) - len(copies) - len(held_out_ids(probes))


def test_a_second_held_out_set_does_not_overlap() -> None:
    probes = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.2, seed=0)
    test = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.2, seed=0, taken=held_out_ids(probes))
    assert not held_out_ids(test) & held_out_ids(probes)
    limited = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.5, seed=0, max_bytes_per_source=2000)
    assert all(len(d) < 40 for d in limited.values())


def test_files_round_trip_with_equal_bytes(tmp_path) -> None:
    probes = build_probes(REPRESENTATIVE, CAPABILITIES, share=0.1, seed=0)
    first = {n: p.read_bytes() for n, p in write_probes(tmp_path / "a", probes).items()}
    second = {n: p.read_bytes() for n, p in write_probes(tmp_path / "b", probes).items()}
    assert first == second
    assert read_probes(tmp_path / "a") == probes


def test_bad_requests_are_sentences(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"share of 1\.5"):
        build_probes(REPRESENTATIVE, CAPABILITIES, share=1.5, seed=0)
    with pytest.raises(RecipeError, match="'books'"):
        build_probes(REPRESENTATIVE, {"books": ("knowledge",)}, share=0.1, seed=0)
    with pytest.raises(DataError, match="Too few representative documents of wiki"):
        build_probes({"wiki": _source("wiki", 1)}, {"wiki": ("knowledge",)}, share=0.1, seed=0)
    with pytest.raises(DataError, match="no probes"):
        read_probes(tmp_path)
