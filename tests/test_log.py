"""What a run tells: nothing twice, nothing lost, and never at the price of the training."""

import errno
import io
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
from small import differing, everything, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from gan import disk, distributed, log
from gan.log import Log

pytestmark = pytest.mark.usefixtures("quick_disk")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def back(monkeypatch):
    """Set when a file server that has gone away comes back; a write waits for it."""
    monkeypatch.setattr(log, "PATIENCE", 0.1)
    return threading.Event()


FAULTS = {"full": "No space left on device", "hang": "no answer within 0 s"}


@pytest.mark.row("T1", "one warning; the other log goes on; training bit-identical")
@pytest.mark.parametrize(
    ("failing", "fault"),
    [
        *(("_scalars", "full"), ("_line", "hang")),
        *(pytest.param(part, "full", marks=pytest.mark.slow) for part in ("_line", "_picture")),
        *(pytest.param(part, "hang", marks=pytest.mark.slow) for part in ("_scalars", "_picture")),
    ],
)
def test_a_log_that_cannot_be_written_is_told_once_and_changes_nothing(
    tmp_path, failing, fault, monkeypatch, back, tried
):
    expected = trainer(tmp_path / "whole", log_every=1)
    expected.train()
    act = {"full": full, "hang": back.wait}[fault]
    monkeypatch.setattr(Log, failing, lambda *given: act())
    run = trainer(tmp_path / "run", log_every=1)
    if failing == "_picture":
        picture = np.zeros((2, 2, 3), np.uint8)
        scalars = run.monitor.scalars

        def drawing(*given):
            scalars(*given)
            run.monitor.log.picture(1, "x", picture)

        run.monitor.scalars = drawing
    with pytest.warns(UserWarning, match=FAULTS[fault]) as caught:
        assert run.train()
    assert len(caught) == 1
    assert differing(everything(expected), everything(run)) == set()
    if failing != "_line":
        assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    back.set()
    answered(run.monitor.log)
    run.monitor.log.close()
    tried(1)


def test_tensorboard_is_written_again_once_there_is_room(tmp_path, monkeypatch):
    write, free = RecordWriter.write, [log.ROOM + 1]
    monkeypatch.setattr(RecordWriter, "write", lambda *given: write(*given) if free[0] else full())
    monkeypatch.setattr(disk, "room", lambda path: free[0])
    monkeypatch.setattr(log, "REST", 0.0)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # of the thread that writes
    told = Log(tmp_path, {"step": 0, "images": 0, "discriminator_updates": 0}, steps=9)

    def noted(*steps):
        for step in steps:
            clocks = {"step": step, "images": step, "discriminator_updates": step}
            told.scalars(clocks, {"x": float(step)})
            told.picture(step, "x", np.zeros((2, 2, 3), np.uint8))  # waits for what is written

    noted(1)
    free[0] = 0
    with pytest.warns(UserWarning, match=FAULTS["full"]) as caught:
        noted(2, 3)
    assert len(caught) == 1
    free[0] = log.ROOM + 1
    noted(4)
    told.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in seen.Scalars("x")] == [1, 4]


class Broken(io.StringIO):
    """A pipe that nobody reads, or a file on a full disk."""

    def flush(self):
        full()


@pytest.mark.row("T1", "standard output that cannot be written is told once and costs no step")
def test_an_output_that_cannot_be_written_is_told_once_and_changes_nothing(
    tmp_path, monkeypatch, tried
):
    expected = trainer(tmp_path / "whole", log_every=1)
    expected.train()
    run = trainer(tmp_path / "run", log_every=1)
    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.warns(UserWarning, match="standard output cannot be written.* No space") as caught:
        assert run.train()
    assert len(caught) == 1
    assert differing(everything(expected), everything(run)) == set()
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    tried(1)


@pytest.mark.slow
@pytest.mark.row("T1", "a log that fails at every write costs at most 1 % of the time")
def test_a_log_that_fails_costs_no_time(tmp_path, monkeypatch, tried):
    """Processor time of whole runs, the three kinds in turn, beside that of logs which work."""
    scalars, rounds = Log._scalars, 7
    taken = {"works": [], "again": [], "fails": []}
    for number in range(rounds + 1):
        for kind, times in taken.items():
            failing = (lambda *_: full()) if kind == "fails" else scalars
            monkeypatch.setattr(Log, "_scalars", failing)
            run = trainer(tmp_path / f"{kind}-{number}", steps=100, save_every=10**6, log_every=1)
            fault = pytest.warns(UserWarning, match=FAULTS["full"])
            expected = fault if kind == "fails" else nullcontext()
            started = time.process_time()
            with expected:
                assert run.train()
            if number:  # the first round warms up
                times.append(time.process_time() - started)
    ratios = {
        kind: [mine / its for mine, its in zip(taken[kind], taken["works"], strict=True)]
        for kind in ("again", "fails")
    }
    low, _, high = statistics.quantiles(ratios["again"])
    assert statistics.median(ratios["fails"]) <= 1.01 + (high - low) / 2
    tried(rounds)


def answered(written):
    """Wait until what hung has come to an end."""
    for hand in written._hands.values():
        while hand._hangs and hand._answers.empty():
            pass


def test_a_log_is_written_again_once_its_file_answers(tmp_path, monkeypatch, back):
    written, line = Log(tmp_path, {"step": 0, "discriminator_updates": 0}, 3), Log._line
    monkeypatch.setattr(Log, "_line", lambda *given: back.wait() and line(*given))
    counts = {"step": 1, "images": 8, "discriminator_updates": 1}
    with pytest.warns(UserWarning, match=r"metrics\.jsonl failed.* no answer within"):
        written.scalars(counts, {"a": 1.0})
    written.scalars({**counts, "step": 2}, {"a": 2.0})  # nobody waits a second time
    back.set()
    answered(written)
    written.scalars({**counts, "step": 3}, {"a": 3.0})
    written.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 3]


@pytest.mark.row("T3", "values that are not finite: words in metrics.jsonl, points in TensorBoard")
def test_a_value_that_is_none_is_kept_by_name_in_both_logs(tmp_path):
    written = Log(tmp_path, {"step": 0, "discriminator_updates": 0}, 3)
    values = {"a": math.nan, "b": math.inf, "c": 1.5}
    written.scalars({"step": 1, "images": 8, "discriminator_updates": 1}, values)
    written.close()
    assert lines_of(tmp_path)[0].items() >= {"a": "nan", "b": "inf", "c": 1.5}.items()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: events.Scalars(tag)[0].value for tag in values}
    assert str(found) == str(values)


@pytest.mark.parametrize("warmup", [0, 2])
def test_what_a_start_without_a_checkpoint_wrote_is_in_neither_log(tmp_path, warmup):
    counts = [
        {"step": max(0, n - warmup), "images": 8 * n, "discriminator_updates": n} for n in range(5)
    ]
    for start in (1.0, 2.0):
        written = Log(tmp_path, counts[0], 5, warmup)
        for count in counts[1 : 5 if start == 1 else 4]:  # the first came further
            written.scalars(count, {"a": start})
        written.close()
    assert [line["a"] for line in lines_of(tmp_path)] == [2.0, 2.0, 2.0]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("a")
    assert [event.value for event in events] == [2.0, 2.0, 2.0]
    assert [event.step for event in events] == [n - warmup for n in (1, 2, 3)]


@pytest.mark.row("T4", "after SIGKILL every line that was printed is in metrics.jsonl")
def test_a_killed_process_has_written_what_it_printed(tmp_path, tried):
    printed, out = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(out, 1)
        sys.stdout = os.fdopen(1, "w")
        trainer(tmp_path, steps=10**6, save_every=10**6, log_every=1).train()
        os._exit(1)
    os.close(out)
    with os.fdopen(printed) as lines:
        for line in lines:
            if line.startswith("step 40/"):
                break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    steps = [json.loads(line)["step"] for line in whole_lines(tmp_path)]
    assert steps[:40] == list(range(1, 41))
    tried(40)


def whole_lines(folder):
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if line[-1] == "}"]


@pytest.mark.row("T5", "the first process alone speaks, once an interval")
def test_only_the_first_process_speaks_and_once_an_interval(tmp_path, capsys, monkeypatch, tried):
    trainer(tmp_path, steps=40, log_every=10, save_every=40).train()
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "10/40",
        "20/40",
        "30/40",
        "40/40",
    ]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    trainer(tmp_path / "second", steps=4, save_every=40).train()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "second").exists()
    tried(5)
