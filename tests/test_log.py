"""What a run tells: nothing twice, nothing lost, and never at the price of the training."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from small import differing, everything, trainer

from gan import distributed
from gan.log import Log

pytestmark = pytest.mark.usefixtures("quick_disk")


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.row("T1", "one warning; the other log goes on; training bit-identical")
@pytest.mark.parametrize("failing", ["_scalars", "_line", "_picture"])
def test_a_log_that_cannot_be_written_is_told_once_and_changes_nothing(
    tmp_path, failing, monkeypatch, tried
):
    expected = trainer(tmp_path / "whole", log_every=1)
    expected.train()
    monkeypatch.setattr(Log, failing, lambda *given: full())
    run = trainer(tmp_path / "run", log_every=1)
    if failing == "_picture":
        picture = __import__("numpy").zeros((2, 2, 3), dtype="uint8")
        scalars = run.monitor.scalars

        def drawing(*given):
            scalars(*given)
            run.monitor.log.picture(1, "x", picture)

        run.monitor.scalars = drawing
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        assert run.train()
    assert len(caught) == 1
    assert differing(everything(expected), everything(run)) == set()
    if failing != "_line":
        assert [line["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    tried(1)


CHILD = """
import sys
sys.path[:0] = {path!r}
from small import trainer
trainer({folder!r}, steps=10**6, save_every=10**6, log_every=1).train()
"""


@pytest.mark.row("T4", "after SIGKILL every line that was printed is in metrics.jsonl")
def test_a_killed_process_has_written_what_it_printed(tmp_path, tried):
    code = CHILD.format(path=sys.path, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if line.startswith("step 40/"):
                break
        child.send_signal(signal.SIGKILL)
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
