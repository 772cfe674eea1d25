"""Scale on paper: limits that are known without a model."""

import pytest
from benchmarks.scaling import PRESETS, Link, Sent, all_reduce, communication, strong, weak

from gan.commands.bench import compose


def test_a_ring_sends_nearly_everything_twice():
    fast = Link(10.0, 0.0)
    assert all_reduce(20.0, 1, fast) == 0
    assert all_reduce(20.0, 2, fast) == pytest.approx(2.0)  # 20 MB at 10 GB/s, both ways at once
    assert all_reduce(20.0, 10**6, fast) == pytest.approx(4.0, rel=1e-5)
    assert all_reduce(0.0, 5, Link(10.0, 3.0)) == pytest.approx(8 * 0.003)


def test_every_update_sends_its_players_gradients():
    slow = Link(1.0, 0.0)
    once, often = (communication(Sent(8.0, 2.0, n), 16, slow) for n in (1, 5))
    assert once == pytest.approx(10.0 * 30 / 16)
    assert often == pytest.approx(18.0 * 30 / 16)
    assert communication(Sent(8.0, 2.0), 8, slow) < once / 10  # within a node


def test_a_step_waits_for_its_updates_and_for_the_question_whether_to_stop():
    late = Link(1e9, 1e3)  # a millisecond a message
    assert communication(Sent(1.0, 1.0, 5), 16, late) == pytest.approx((1 + 1 + 5) * 30)


def test_efficiency_is_one_without_waiting_and_fixed_work_is_lost_when_a_batch_is_split():
    assert weak(10.0, 0.0) == strong(0.0, 10.0, 8, 0.0) == 1.0
    assert weak(10.0, 10.0) == 0.5
    assert strong(10.0, 0.0, 8, 0.0) == pytest.approx(1 / 8)
    assert strong(1.0, 8.0, 8, 1.0) == pytest.approx(9.0 / (8 * 3.0))


def test_every_preset_is_there():
    from gan.commands.train import conf_dir

    assert PRESETS.keys() == {path.stem for path in (conf_dir() / "model").iterdir()}
    for name in ("dcgan", "sngan"):
        critic = compose(f"model={name}")["trainer"]["n_critic"]
        assert PRESETS[name].n_critic == critic
