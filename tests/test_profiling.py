"""A trace of some steps, which Perfetto and TensorBoard open."""

import gzip
import json

import pytest
from small import trainer

from gan.run.monitor import Monitor
from gan.run.profiling import WARMUP


def traces(run_dir):
    return [json.loads(gzip.decompress(p.read_bytes())) for p in (run_dir / "profile").iterdir()]


def run(run_dir, steps, profile):
    trainer(run_dir, monitor=Monitor(run_dir, steps, profile=profile), steps=steps).train()


@pytest.mark.slow
def test_the_wanted_steps_are_traced(tmp_path):
    run(tmp_path, WARMUP + 5, profile=2)
    (trace,) = traces(tmp_path)
    names = [event.get("name", "") for event in trace["traceEvents"]]
    steps = sum("_fused_adam_" in name or name.startswith("Optimizer.step") for name in names)
    assert steps == 2 * 2  # steps, players
    assert any("aten::linear" in name for name in names)
    assert "profile" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_run_that_ends_early_leaves_what_it_saw(tmp_path):
    run(tmp_path, WARMUP + 1, profile=50)
    assert len(traces(tmp_path)) == 1


def test_without_it_nothing_is_written(tmp_path):
    run(tmp_path, WARMUP + 1, profile=0)
    assert not (tmp_path / "profile").exists()
