"""Loss and gradient of SFT and GRPO in float64, to 1e-12 of the gradient's norm, however an update is cut."""

import pytest
import torch

from tests.training.post_training_models import tiny_config, tiny_tokenizer
from tests.training.ranks import on_ranks
from tests.training.test_grpo import a_step
from tests.training.test_sft import SUMS
from training.advantages import LeadSettings
from training.chat import render_chat
from training.chat_packing import chat_batch
from training.distributed import Ranks
from training.grpo_settings import ObjectiveSettings
from training.grpo_step import add_gradient
from training.losses import IGNORED
from training.model import Decoder
from training.order import Batch
from training.update import accumulate_gradients

ROWS = [[0, 1], [2, 3], [4, 5], [6]]


def sft_gradient(batch, micro_batch=None, ranks=None):
    model = Decoder(tiny_config()).init_weights(1).double()
    more = {} if ranks is None else {"ranks": ranks}
    loss = accumulate_gradients(model, batch, micro_batch_sequences=micro_batch, **more)
    return float(loss), torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def some_chats():
    return [render_chat(tiny_tokenizer(), messages) for messages in SUMS[3:10]]


def padded_on_the_left(batch):
    """The same rows with their padding in front, which is no place of ours but may be one of others."""
    moved = []
    for tensor in (batch.input_ids, batch.labels, batch.positions, batch.document_ids):
        rows = []
        for row, documents in zip(tensor, batch.document_ids, strict=True):
            rows.append(row.roll(int((documents < 0).sum())))
        moved.append(torch.stack(rows))
    return Batch(*moved)


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-15)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < 1e-12


def test_sft_does_not_depend_on_packing_order_padding_or_micro_batches():
    chats = some_chats()
    expected = sft_gradient(chat_batch(chats, [[at] for at in range(7)], 60))
    assert expected[1].norm() > 1e-3
    for rows in (ROWS, [[6, 5, 4, 3], [2, 1, 0]], [[3, 6], [0], [5, 2, 1], [4]]):
        batch = chat_batch(chats, rows, 60)
        for micro_batch in (None, 1, 3):
            assert_same(sft_gradient(batch, micro_batch), expected)
            assert_same(sft_gradient(padded_on_the_left(batch), micro_batch), expected)


def of_rank(rank_folder=None):
    import torch.distributed as dist

    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    first, count = ranks.share(0, 4)
    loss, gradient = sft_gradient(chat_batch(some_chats(), ROWS[first : first + count], 60), 1, ranks)
    dist.all_reduce(gradient)
    return loss, gradient


def test_sft_does_not_depend_on_ranks(tmp_path):
    expected = sft_gradient(chat_batch(some_chats(), ROWS, 60))
    for loss, gradient in on_ranks(2, tmp_path, of_rank):
        assert_same((loss, torch.as_tensor(gradient)), expected)


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveSettings(normalisation="dapo", lead=LeadSettings(), kl_coefficient=0.1),
        ObjectiveSettings(normalisation="grpo", ratio="sequence"),
        ObjectiveSettings(normalisation="luspo", ratio="sequence"),
        ObjectiveSettings(normalisation="dr_grpo", surrogate="cispo"),
        ObjectiveSettings(normalisation="bnpo", batch_rollouts=4, surrogate="sapo"),
        ObjectiveSettings(normalisation="dapo", surrogate="vespo"),
    ],
)
def test_grpo_does_not_depend_on_order_micro_batches_or_on_who_adds_it_up(objective):
    model, rollouts, judged, weights = a_step(objective)
    reference = Decoder(tiny_config()).init_weights(4).double()
    old = {}

    def run(parts, micro_batch):
        """The gradient of parts of the update, as ranks would add them up: the weights are those of the whole."""
        total = 0.0
        model.zero_grad()
        for part in parts:
            stats = add_gradient(
                model,
                [rollouts[i] for i in part],
                judged.advantages.reshape(-1)[part],
                weights[part],
                objective,
                temperature=0.8,
                micro_batch=micro_batch,
                reference=reference,
                old={at: old[i] for at, i in enumerate(part) if i in old} if old else None,
            )
            total += stats.loss
        return total, torch.cat([p.grad.reshape(-1).clone() for p in model.parameters()]), stats

    order = list(range(12))
    at_ratio_one = run([order], 12)
    old = {i: x + 0.2 * ((i % 3) - 1) for i, x in at_ratio_one[2].old.items()}
    expected = run([order], 12)
    assert expected[1].norm() > 1e-5 and (expected[1] - at_ratio_one[1]).norm() > 1e-6
    for parts in ([order[::-1]], [[5, 0, 11, 3, 8, 1], [10, 2, 6, 4, 9, 7]], [[i] for i in order]):
        for micro_batch in (1, 5):
            assert_same(run(parts, micro_batch)[:2], expected[:2])


def test_labels_of_padding_are_none():
    batch = chat_batch(some_chats(), ROWS, 60)
    assert (batch.labels[batch.document_ids < 0] == IGNORED).all()
