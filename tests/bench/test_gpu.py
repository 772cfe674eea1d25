"""The benchmarks of a GPU: the same code on the CPU, with tiny games and few rounds."""

import json

import pytest
import torch

from gan.bench import gpu, limits
from gan.bench.options import Options
from gan.commands import main
from gan.config.settings import exact

SLOW = pytest.mark.slow
QUICK = limits.Ceilings(1e-6, {torch.float32: 1e12, torch.bfloat16: 1e12}, 1e11)


@pytest.fixture
def rows(composed, monkeypatch, tmp_path):
    """The rows of a case: `rows("graph", "tiny")`."""
    monkeypatch.setattr(limits, "ceilings", lambda device, kinds: QUICK)

    def measured(case, model):
        options = Options(model=(model,), rounds=2, steps=1, images=64, folder=tmp_path)
        return [json.loads(json.dumps(row)) for row in gpu.CASES[case](options, composed, "cpu")]

    return measured


@pytest.mark.parametrize(
    ("case", "model"),
    [
        ("graph", "tiny"),
        pytest.param("defaults", "tiny_sngan", marks=SLOW),
        pytest.param("overhead", "tiny", marks=SLOW),
        pytest.param("overhead", "tiny_wnet", marks=SLOW),
        pytest.param("lazy", "tiny_sngan", marks=SLOW),
    ],
)
def test_a_case_compares_steps_of_a_game(rows, case, model):
    found = rows(case, model)
    assert [row.get("tf32") for row in found] == ([False, True] if case == "defaults" else [None])
    for row in found:
        assert (row["case"], row["model"], row["rounds"]) == (case, model, 2)
        assert set(row["host_ms"]) == {"ours", "reference"}
        assert row["value"] > 0
        assert row["null_ratio"] > 0


@SLOW  # the first count loads much of torch
def test_a_floor_stands_beside_what_the_device_can_do(rows):
    ceilings, *floors = rows("floor", "tiny")
    least = ceilings["at_least_ms"]
    moving = 1e3 * ceilings["gigabytes"]["fused"] / (QUICK.bytes / 1e9)
    assert least["floor"] == pytest.approx(max(least["compute"], moving), rel=2e-2)
    assert ceilings["gigabytes"]["fused"] < ceilings["gigabytes"]["eager"]
    assert [row["graphs"] for row in floors] == [False, True]
    for row in floors:
        assert row["reference"] == pytest.approx(least["floor"], rel=1e-2)
        assert row["ratio"] == pytest.approx(row["value"] / row["reference"], rel=1e-2)
        assert row["null_ratio"] == 1


@SLOW
def test_feeding_reads_a_store_beside_what_is_resident(rows, tmp_path):
    eager, graphed, copy = rows("feed", "tiny")
    assert (eager["graphs"], graphed["graphs"], copy["case"]) == (False, True, "copy")
    assert copy["unit"] == "GB per second"
    assert copy["ratio"] == pytest.approx(copy["value"] / copy["reference"], rel=0.6)
    assert not any(tmp_path.iterdir())


def test_what_breaks_off_leaves_a_row_and_the_others_go_on(composed, capsys):
    def measure(desk, model):
        yield {"model": model}
        if model == "tiny":
            raise RuntimeError("out of memory")

    models = "tiny", "tiny_sngan"
    first, broken, second = gpu.measured("G1", "graph", models, measure, Options(), composed, "cpu")
    assert (first, second) == ({"model": "tiny"}, {"model": "tiny_sngan"})
    assert (broken["id"], broken["model"]) == ("G1", "tiny")
    assert broken["failed"] == "RuntimeError: out of memory"
    assert "in measure" in capsys.readouterr().err


def test_the_command_fails_where_a_case_did(monkeypatch, capsys):
    broken = {"id": "G1", "case": "graph", "failed": "RuntimeError: out of memory"}
    monkeypatch.setitem(gpu.CASES, "graph", lambda options, compose: [broken])
    assert main(["bench", "gpu", "case=graph"]) == 1
    assert json.loads(capsys.readouterr().out) == broken


def test_exact_switches_tf32_off_and_back():
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with exact():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before[1])
    assert torch.backends.cudnn.allow_tf32 == before[0]


def test_advice_speaks_of_graphs_and_of_floors():
    said = gpu.advice(
        [
            {"case": "graph", "model": "dcgan64_b64", "value": 0.5, "reference": 1.5},
            {"case": "floor", "model": "wnet64_b64", "graphs": True, "value": 7.0, "ratio": 2.5},
            {"case": "floor", "skipped": "there is no GPU here"},
        ]
    )
    assert "dcgan64_b64 takes 1.5 ms a step and 0.5 ms with trainer.graphs=true" in said
    assert "wnet64_b64 with graphs takes 2.5 times" in said
    assert gpu.advice([{"case": "floor", "skipped": "no"}]) == ""
