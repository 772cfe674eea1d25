"""Paired measurements on a clock that the works themselves move: no time is measured here."""

import json
from collections import Counter
from dataclasses import fields

import pytest
import torch
from torch.nn.functional import conv2d, conv_transpose2d
from torch.utils.flop_counter import FlopCounterMode

from gan.bench import data, games, gpu, limits, scale, steps, train
from gan.bench.options import Options, parse
from gan.bench.paired import LEAST, Goal, Paired, alternate, by, in_words, row, skipped
from gan.commands import main
from gan.commands.bench import compose
from gan.registry import ConfigError

FIELDS = {  # of every result
    *("id", "case", "value", "unit", "reference", "ratio", "iqr", "null_ratio", "null_iqr"),
    *("rounds", "goal", "passed", "machine", "versions", "load"),
}
LOADS = pytest.mark.slow  # the first count loads much of torch


class Hours:
    """A clock that stands still until a work takes its time."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def work(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds

        return run


def test_every_round_runs_all_three_and_orders_differ():
    hours = Hours()
    works = [hours.work(name, taken) for name, taken in (("o", 2.0), ("r", 1.0), ("n", 1.0))]
    paired = alternate(*works, rounds=30, timer=by(lambda: hours.now), warm=2)
    orders = Counter("".join(hours.log[n : n + 3]) for n in range(0, len(hours.log), 3))
    assert sum(orders.values()) == 32
    assert set(map("".join, orders)) == {"orn", "onr", "ron", "rno", "nor", "nro"}
    assert paired == Paired([2.0] * 30, [1.0] * 30, [1.0] * 30)
    assert paired.ratios() == [2.0] * 30
    assert paired.ratios(faster=True) == [0.5] * 30
    assert paired.null_ratios() == [1.0] * 30


def test_rounds_end_with_their_time_but_not_before_the_least():
    hours = Hours()
    work, timer = hours.work("w", 1.0), by(lambda: hours.now)
    assert len(alternate(work, work, rounds=9, timer=timer, seconds=0.0).ours) == LEAST
    assert len(alternate(work, work, rounds=9, timer=timer).ours) == 9
    assert len(alternate(work, work, rounds=2, timer=timer, seconds=0.0).ours) == 2


def test_ratios_are_taken_within_a_round():
    """A machine that is ten times slower for half the time does not move a paired ratio."""
    slow = [1.0, 10.0] * 8
    paired = Paired([1.1 * s for s in slow], slow, slow)
    assert row("X", "x", "s", paired, 1.0, Goal(1.2))["ratio"] == pytest.approx(1.1)


def test_a_row_has_the_fields_and_the_verdict():
    paired = Paired([1.10, 1.12, 1.08], [1.0] * 3, [0.9, 1.0, 1.2])
    found = row("T1", "overhead", "ms", paired, 1e3, Goal(1.02), {"model": "dcgan"})
    assert FIELDS | {"model"} == set(found)
    assert (found["value"], found["reference"], found["ratio"]) == (1100, 1000, 1.1)
    assert found["null_iqr"] == [0.95, 1.1]
    assert found["passed"] is False
    assert row("T1", "o", "ms", paired, 1e3, Goal(1.02, resolved=True))["passed"] is True
    faster = row("T3", "o", "ms", paired, 1e3, Goal(0.95, "at least"))
    assert faster["ratio"] == pytest.approx(1 / 1.1, rel=1e-3)
    assert faster["passed"] is False
    json.dumps([found, faster, skipped("D3", "ffcv", "why")])
    sizes = Paired([101], [100], [100])
    assert row("D7", "disk", "bytes", sizes, 1, Goal(1.03))["passed"] is True
    assert row("D7", "disk", "bytes", sizes, 1, Goal(1.0))["passed"] is False


def test_a_difference_is_bounded_in_its_own_unit():
    paired = Paired([1.1, 1.2], [1.0, 1.0], [1.0, 1.0])
    found = row("T2", "host", "us", paired, 1e6, Goal(25.0), difference=True)
    assert found["value"] == pytest.approx(150_000)
    assert found["passed"] is False
    assert row("T2", "host", "us", paired, 1e2, Goal(25.0), difference=True)["passed"] is True


def test_options_are_checked_with_the_nearest_name():
    reads = {"batch": "size rounds", "disk": "size"}
    words = ["case=batch", "size=32,64"]
    assert parse(words, reads, []) == Options(("batch",), (32, 64))
    assert parse(["rounds=2"], reads, [], ["disk", "batch"]).rounds == 2
    for word, said in (
        ("cases=batch", "case"),
        ("case=bath", "batch"),
        ("rounds=0", "at least 1"),
        ("rounds=1,2", "one number"),
        ("batch", "KEY=VALUE"),
        ("rounds=2", "rounds is not read by disk; known: case, size, threads"),
        ("images=9", "images is not read"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse([word], reads, [], ["disk"])


@LOADS
def test_counts_of_a_step_follow_its_shapes():
    a, b = torch.ones(4, 5), torch.ones(5, 6)
    counts = limits.count(lambda: (a @ b).relu())
    product = 4 * (20 + 30 + 24)
    flops = {torch.float32: 2 * 4 * 5 * 6}
    assert counts == limits.Counts(2, flops, product + 4 * 2 * 24, product)
    most = limits.Ceilings(launch=1e-6, flops={torch.float32: 1e9}, bytes=1e12)
    bounds = limits.bounds(counts, most)
    assert max(bounds, key=bounds.get) == "launch"
    assert bounds["launch"] == pytest.approx(2e-6)
    assert limits.floor(counts, most) == pytest.approx(240e-9)


@LOADS
def test_products_count_by_their_numbers_and_what_is_written_counts_twice():
    half, single = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3, 4)
    counts = limits.count(lambda: (half @ half.T, single @ single.T))
    assert counts.flops == {torch.bfloat16: 2 * 2 * 3 * 2, torch.float32: 2 * 3 * 4 * 3}
    weights, others = [torch.ones(5)], [torch.zeros(5)]
    moved = limits.count(lambda: torch._foreach_lerp_(weights, others, 0.5))
    assert (moved.operations, moved.bytes, moved.kept) == (1, 4 * 15, 4 * 15)
    copied = limits.count(lambda: torch._foreach_copy_(weights, others))
    assert (copied.bytes, copied.kept) == (4 * 15, 0)
    optimizer = torch.optim.Adam(weights := [torch.ones(5, requires_grad=True)], fused=True)
    weights[0].grad = torch.ones(5)
    optimizer.step()
    stepped = limits.count(optimizer.step)  # weight and moments are written, gradients only read
    assert stepped.kept == 4 * (4 + 3) * 5 + 4  # and its counter is read


@LOADS
@pytest.mark.parametrize("convolve", [conv2d, conv_transpose2d])
def test_convolutions_and_their_double_backward_count_as_torch_counts(convolve):
    image = torch.rand(2, 3, 6, 5, requires_grad=True)
    weight = torch.rand(3, 3, 2, 2, requires_grad=True)

    def step():
        made = convolve(image, weight).square().sum()
        (slope,) = torch.autograd.grad(made, image, create_graph=True)
        slope.square().sum().backward()

    with FlopCounterMode(display=False) as expected:
        step()
    assert sum(limits.count(step).flops.values()) == expected.get_total_flops() > 0


def test_without_a_gpu_its_cases_are_skipped(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["bench", "gpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["id"] for r in rows] == ["G1", "G2", "G3", "G4", "G5", "G7"]
    assert all("no GPU" in r["skipped"] for r in rows)


def test_the_command_measures_and_refuses(capsys, tmp_path):
    words = ["case=disk,batch", "size=8", "images=256", "rounds=2", f"folder={tmp_path}"]
    assert main(["bench", "data", *words]) == 0
    out = capsys.readouterr()
    disk, batch = map(json.loads, out.out.splitlines())
    assert (disk["id"], batch["id"], batch["rounds"]) == ("D7", "D1", 2)
    assert "images of 8 pixels" in out.err
    assert not any(tmp_path.iterdir())
    assert main(["bench", "data", "case=dsik"]) == 2
    assert "disk" in capsys.readouterr().err
    assert main(["bench", "train", "model=tiny", "size=64"]) == 2
    assert "size is not read by waiting" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["defaults", "compile"])
def test_a_game_without_a_usual_loop_is_refused(case, capsys):
    assert main(["bench", "step", f"case={case}", "model=tiny_wnet", "rounds=3"]) == 2
    said = "this loop by hand draws from noise and pays no penalty, with nonsaturating or hinge"
    assert f"{said} losses: choose model=dcgan" in capsys.readouterr().err


def test_bf16_is_measured_beside_float32_whatever_this_machine_would_choose(monkeypatch, capsys):
    played, build = [], games.trainer_of

    def building(checked):
        played.append((checked.settings.precision, checked.settings.graphs))
        return build(checked)

    monkeypatch.setattr(games, "trainer_of", building)
    assert main(["bench", "step", "case=precision", "model=tiny", "rounds=3", "steps=1"]) == 0
    assert played == [("fp32", False), ("fp32", False), ("bf16", False)]
    assert json.loads(capsys.readouterr().out)["id"] == "T9"


def test_rows_without_advice_of_their_own_are_told_in_words():
    paired = Paired([1.0, 1.0], [2.0, 2.0], [2.0, 2.2])
    fast = row("T3", "defaults", "ms", paired, 1.0, Goal(3.0, "at least"), {"model": "dcgan64"})
    slow = row("D2", "limit", "s", paired, 1.0, None, {"size": 32})
    assert in_words([fast, skipped("D3", "ffcv", "not here"), slow]) == (
        "defaults dcgan64: 2 times as fast as the reference, which is 0.9318 to 0.9773 times as "
        "fast as itself (aim: at least 3, missed); limit 32: 0.5 times the reference, which is "
        "1.025 to 1.075 times itself."
    )
    assert in_words([]) == ""


@pytest.mark.parametrize("subject", [data, gpu, scale, steps, train])
def test_each_case_says_what_it_reads(subject):
    assert subject.READS.keys() == subject.CASES.keys() >= {*subject.DEFAULT}
    known = {field.name for field in fields(Options)}
    assert all({*read.split()} < known for read in subject.READS.values())


def test_what_a_preset_sets_for_a_part_that_is_chosen_away_is_left_out():
    schedule = compose("model=r3gan", *games.COMMON)["schedule"]["generator"]
    assert (schedule["name"], "end" in schedule) == ("constant", False)
