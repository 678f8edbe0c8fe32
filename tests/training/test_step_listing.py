"""The listing of a step is what the step reads, on one process and on several."""

import numpy as np
import pytest

from curation.errors import RecipeError
from tests.training.test_order import T, make_order
from training.step_listing import list_step

WEIGHTS = [{"code": 0.5, "math": 0.3, "web": 0.2}, {"code": 0.1, "web": 0.9}]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_listing_names_the_tokens_that_each_rank_reads(ranks):
    order = make_order(WEIGHTS, [20, 12])
    for step in range(4):  # step 2 crosses into the second phase
        rows = list_step(order, step, 8, ranks=ranks)
        assert [row["index"] for row in rows] == list(range(8 * step, 8 * step + 8))
        share = 8 // ranks
        for rank in range(ranks):
            mine = [row for row in rows if row["rank"] == rank]
            batch = order.batch(8 * step + rank * share, share)
            for row, read in zip(mine, batch.input_ids.numpy(), strict=True):
                source = order.sources[row["source"]]
                pieces = []
                for document in row["documents"]:
                    whole = source.document(list(source.ids).index(document["id"]))
                    pieces.append(whole[document["start"] : document["stop"]])
                assert np.array_equal(np.concatenate(pieces), read) and len(read) == T


def test_texts_are_those_of_the_tokens():
    order = make_order(WEIGHTS, [20, 12])
    for row in list_step(order, 1, 8, decode=str):
        source = order.sources[row["source"]]
        for document in row["documents"]:
            whole = source.document(list(source.ids).index(document["id"]))
            assert document["text"] == str(whole[document["start"] : document["stop"]].tolist())


@pytest.mark.parametrize(
    ("step", "ranks", "sentence"), [(4, 1, "last step is 3"), (0, 3, "divides the batch")]
)
def test_what_cannot_be_listed_is_a_recipe_error(step, ranks, sentence):
    with pytest.raises(RecipeError, match=sentence):
        list_step(make_order(WEIGHTS, [20, 12]), step, 8, ranks=ranks)
