"""Properties of the order of samples and of what is drawn for them (L3 to L7)."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.data.datasets import Plan, draw
from gan.data.stream import Stream

CPU = torch.device("cpu")


def rows_of(stream, count):
    return np.concatenate([stream.plan(position).images["real"] for position in range(count)])


class Numbers:
    """A data set of so many samples that reads nothing."""

    resident, gives, facts = "off", ("real",), {}

    def __init__(self, count, flip=False):
        self.store = SimpleNamespace(count=count, shape=(1, 1, 1), path="numbers", content_hash="0")
        self.count, self.flip = count, flip

    def __len__(self):
        return self.count

    def plan(self, seed, epoch, indices):
        flip = draw(seed, epoch, indices, "flip") % np.uint64(2) == 1 if self.flip else None
        return Plan({"real": indices}, {"epoch": np.full(len(indices), epoch)}, flip)


def stream_of(count, batch, seed=0, rank=0, size=1, flip=False):
    return Stream(Numbers(count, flip), batch, seed, CPU, ["real"], rank=rank, size=size)


@pytest.mark.row("L6")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    share=st.integers(1, 9),
    size=st.integers(1, 4),
    more=st.integers(0, 60),
    seed=st.integers(0, 2**63 - 1),
)
def test_shards_are_disjoint_and_together_all_of_the_data(share, size, more, seed):
    batch, count = share * size, share * size + more
    steps = 3 * count // batch + 1
    ranks = [rows_of(stream_of(count, batch, seed, r, size), steps) for r in range(size)]
    joined = np.concatenate(
        [rank[share * step : share * step + share] for step in range(steps) for rank in ranks]
    )
    epochs = joined[: 3 * count].reshape(3, count)
    assert (np.sort(epochs, 1) == np.arange(count)).all()  # each epoch: all of the data, once
    if count > 20:
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[1] != epochs[2]).any()
    again = rows_of(stream_of(count, batch, seed), steps)  # one process draws the same batches
    assert np.array_equal(again, joined)


@pytest.mark.slow
@pytest.mark.row("L6")
def test_another_process_draws_the_same_order(tmp_path):
    code = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
from test_order import stream_of, rows_of
print(rows_of(stream_of(53, 8, 2**63 - 1), 20).tolist())
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(rows_of(stream_of(53, 8, 2**63 - 1), 20).tolist())


@pytest.mark.row("L4")
def test_a_last_partial_batch_is_filled_from_the_next_epoch(tried):
    stream = stream_of(17, 8)
    seen = np.zeros(17, int)
    for position in range(17 * 5):
        rows = stream.plan(position).images["real"]
        assert len(rows) == 8
        np.add.at(seen, rows, 1)
        assert seen.max() - seen.min() <= 1
        if (position + 1) * 8 % 17 == 0:
            assert seen.max() == seen.min()
    tried(17 * 5)


@pytest.mark.row("L5", "n_critic across the ends of epochs: fresh and full batches")
@pytest.mark.parametrize("count", [8, 9, 11])
def test_five_critic_updates_cross_epochs_without_a_gap(count, tried):
    stream = stream_of(count, 4)
    rows = rows_of(stream, 1000)  # 200 generator updates, five discriminator updates each
    whole = rows[: 4000 // count * count].reshape(-1, count)
    assert (np.sort(whole, 1) == np.arange(count)).all()
    tried(1000)


@pytest.mark.row("L3")
@pytest.mark.parametrize(("count", "batch", "size"), [(0, 4, 1), (1, 4, 1), (3, 4, 1), (7, 8, 2)])
def test_too_few_samples_name_both_numbers_and_two_ways_out(count, batch, size):
    said = rf"trainer\.batch_size={batch} needs .* gives {count}: lower .* or add images"
    with pytest.raises(ValueError, match=said):
        stream_of(count, batch, size=size)


@pytest.mark.row("L7")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch=st.integers(1, 30), seed=st.integers(0, 2**63 - 1))
def test_flips_do_not_depend_on_batches(batch, seed):
    def flips(size):
        stream = stream_of(60, size, seed, flip=True)
        plans = [stream.plan(position) for position in range(120 // size)]
        return {
            (int(epoch), int(row)): bool(flip)
            for plan in plans
            for epoch, row, flip in zip(
                plan.fields["epoch"], plan.images["real"], plan.flip, strict=True
            )
        }

    one, other = flips(batch), flips(60)
    assert all(other[key] == one[key] for key in one.keys() & other.keys())


@pytest.mark.row("L7")
def test_flips_of_epochs_agree_by_chance_alone(tried):
    indices = np.arange(20_000)
    flips = [draw(3, epoch, indices, "flip") % np.uint64(2) for epoch in range(6)]
    for a, b in itertools.combinations(flips, 2):
        assert abs((a == b).mean() - 0.5) < 0.02
    tried(15)
