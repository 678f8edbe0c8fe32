"""The stages that choose text for training stream it: the same files as from lists, in memory that does not grow."""

import functools
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.documents import Document, document_id, write_documents
from curation.errors import DataError
from curation.overlap_index import ReferenceIndex
from probes.capability import write_probes
from recipes.execute import open_run
from recipes.pipeline import Run
from recipes.stages import probing
from recipes.stages.text import _first_bytes, training_documents
from tests.recipes.miniature import miniature_recipe
from training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from training.tokenizing import write_tokens

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "nu") for b in ("ra", "se", "ti") for c in ("b", "d", "n")]
FILE_DOCUMENTS = 40


def sentence(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def make_run(folder: Path, source: str, texts: list[str], held_out: list[str]) -> Run:
    """A run with the files that the tokens stage reads, of one source."""
    folder.mkdir()
    run = open_run(miniature_recipe(folder), folder / "run")
    made = [Document(document_id(source, text), text, source, f"u{n}") for n, text in enumerate(texts)]
    for first in range(0, len(made), FILE_DOCUMENTS):
        part = run.path("documents", source, f"part-{first:05}.parquet")
        write_documents(part, made[first : first + FILE_DOCUMENTS])
    test = [Document(document_id("other", text), text, "other") for text in held_out]
    write_probes(run.path("test"), {"knowledge": test[:1]})
    write_probes(run.path("probes"), {"knowledge": test[1:]})
    save_tokenizer(train_tokenizer([sentence(0)], 300, folder / "trained"), run.path("tokenizer", "model"))
    return run


def test_the_stream_gives_the_files_and_counts_of_lists(tmp_path: Path) -> None:
    probe, test = sentence(1), sentence(2)
    copied = [f"{test} {sentence(n)}" for n in range(200, 204)]
    touched = [f"{' '.join(probe.split()[:40])} {sentence(n)}" for n in range(300, 304)]
    texts = [sentence(n) for n in range(10, 110)] + [probe, *copied, *touched, sentence(9)]
    run = make_run(tmp_path / "a", "prose", texts, [test, probe])
    record = probing._tokenize_one((run, "prose"), lambda count=1: None)

    documents = list(training_documents(run, "prose"))
    index = ReferenceIndex([Document("t", test, "other"), Document("p", probe, "other")])
    free = [d for d in documents if d.text not in (test, probe)]
    near = {o.document_id for d in free for o in index.overlaps(d) if o.share >= 0.5}
    kept = [d for d in free if d.id not in near]
    index.forget()
    for document in kept:
        index.overlaps(document)
    left = {name: share for _, name, share in index.item_shares() if share > 0}
    tokenizer = load_tokenizer(run.path("tokenizer", "model"))
    write_tokens([(d.id, d.text) for d in kept], tokenizer, tmp_path / "lists", "prose")

    assert near and left  # the texts are such that both rules are used
    assert sorted(record["left"].values()) == sorted(left.values())
    assert record["documents"] == len(kept) and record["held_out"] == len(documents) - len(free)
    assert record["overlapping_held_out_text"] == len(near)
    for file in (tmp_path / "lists").iterdir():
        assert run.path("tokens", "prose", file.name).read_bytes() == file.read_bytes()


def test_memory_does_not_grow_with_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "write_tokens", functools.partial(write_tokens, part_bytes=1 << 16))

    def peak(files: int) -> int:
        texts = [sentence(n) for n in range(1000, 1000 + files * FILE_DOCUMENTS)]
        run = make_run(tmp_path / str(files), "prose", texts, [sentence(1), sentence(2)])
        del texts
        tracemalloc.start()
        probing._tokenize_one((run, "prose"), lambda count=1: None)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return reached

    peak(1)  # what is imported and cached once
    assert peak(24) < 1.25 * peak(3)


def test_nothing_left_to_train_on_is_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "prose", [sentence(1), sentence(2)], [sentence(1), sentence(2)])
    with pytest.raises(DataError, match=r"Nothing is left to train on.*source prose"):
        probing._tokenize_one((run, "prose"), lambda count=1: None)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), max_size=20), st.integers(0, 40))
def test_first_documents_by_id_that_fit(drawn: list[tuple[int, int]], budget: int) -> None:
    texts = {name: "x" * size for name, size in drawn}  # equal ids are equal texts
    documents = [Document(f"{name:02}", texts[name], "s") for name, _ in drawn]
    expected: list[str] = []
    for document in sorted(documents, key=lambda d: d.id):
        if expected and sum(map(len, expected)) + len(document.text) > budget:
            break
        expected.append(document.text)
    assert _first_bytes(iter(documents), budget) == expected
