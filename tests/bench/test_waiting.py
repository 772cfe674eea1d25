"""A run's start and its waiting for data: glyphs as well as images, and what is told of them."""

import pytest

from gan.bench import train
from gan.bench.options import Options


@pytest.mark.slow  # processes of their own
def test_a_start_is_timed_until_the_first_step(composed, tmp_path):
    (row,) = train.start(Options(model=("tiny",), rounds=1, folder=tmp_path), composed)
    assert (row["id"], row["model"], row["rounds"], row["unit"]) == ("E2", "tiny", 1, "s")
    assert 1 < row["ratio"] < 20  # torch is imported, and more is done
    assert row["passed"] == (row["value"] <= 10)
    assert not any(tmp_path.iterdir())
    assert train.advice([row]) == f"From the command to the first step: tiny {row['value']:g} s."


def test_advice_is_a_sentence_after_the_other():
    start = {"case": "start", "model": "tiny", "value": 3.0}
    limits = {
        "case": "limits",
        "model": "tiny",
        "images_per_second": 8,
        "value": 2,
        "limit": "data",
    }
    assert train.advice([start, limits]) == (
        "From the command to the first step: tiny 3 s. "
        f"tiny: 8 images/s, 2 ms a step, limited by data. {train.ADVICE['data']}"
    )


def test_a_run_that_never_takes_a_step_is_no_start(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "COMMAND", "print('step 2/9 of another word')")
    with pytest.raises(RuntimeError, match="model=tiny ended before its first step"):
        train._begin(["model=tiny"], tmp_path)
    monkeypatch.setattr(train, "COMMAND", "print('step 1/9', flush=True); input()")
    train._begin(["model=tiny"], tmp_path)


@pytest.mark.slow  # the first count loads much of torch
def test_a_wnet_waits_for_the_embedded_glyphs(composed, tmp_path):
    options = Options(model=("tiny_wnet",), rounds=2, steps=1, folder=tmp_path)
    waits, limits = train.waiting(options, composed)
    assert (waits["id"], waits["case"], waits["model"]) == ("E1", "waiting", "tiny_wnet")
    assert 0 <= waits["waiting"] < 1
    assert limits["limit"] in train.ADVICE
    assert not any(tmp_path.iterdir())
