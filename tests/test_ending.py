"""Stopping, failing disks, and who owns a run directory: nothing is lost, the reason is written."""

import ast
import errno
import inspect
import json
import os
import shutil
import signal
import sys
import time
import warnings
from contextlib import contextmanager, nullcontext

import pytest
import torch
from small import Numbers, differing, everything, newest, resumed, trainer
from torch import nn

from gan import checkpoint, system
from gan.locks import HeldError, Lock
from gan.registry import ConfigError
from gan.run import rundir, saves, signals
from gan.run.monitor import Monitor
from gan.run.saves import StorageError
from gan.run.signals import Stop

pytestmark = pytest.mark.usefixtures("quick_disk")
NUMBERS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
GAME = {"steps": 8, "save_every": 4, "log_every": 2, "sample_every": 2, "discriminator_warmup": 2}


def at(owner, name, number, call=2):
    """Send the signal while `owner.name` is called for the n-th time."""
    original, calls = getattr(owner, name), []

    def asked(*given, **named):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*given, **named)

    setattr(owner, name, asked)


class Asking(Numbers):
    """A stream that is asked while its 4th batch is awaited."""

    number = signal.SIGTERM

    def __next__(self):
        if self.position == 3:
            os.kill(os.getpid(), self.number)
        return super().__next__()


def in_data(run, number):
    run.stream.__class__ = type("Asking", (Asking,), {"number": number})


PHASES = {
    "waiting for data": in_data,
    "warm-up": lambda run, number: at(run, "discriminate", number),
    "discriminator's update": lambda run, number: at(run.discriminator, "update", number, 4),
    "generator's update": lambda run, number: at(run.generator, "update", number),
    "average": lambda run, number: at(run.averages["ema"], "update", number),
    "penalty": lambda run, number: at(run.recipe.penalties["r1"], "term", number),
    "samples": lambda run, number: at(run.monitor, "sample", number),
    "metrics": lambda run, number: at(run.monitor, "measure", number, 1),
    "save": lambda run, number: at(run.saves, "write", number, 1),
    "log": lambda run, number: at(run.monitor, "scalars", number),
    "start": lambda run, number: at(run.monitor, "start", number, 1),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("whole"), measure_every=4, **GAME)
    assert run.train()
    return everything(run)


@pytest.mark.row("P1", "33 of 33 saved once; resumed difference 0")
@pytest.mark.parametrize(  # every phase with one signal, in turn; the slow tier has the others
    ("phase", "name"),
    [
        pytest.param(phase, name, marks=() if place % 3 == number else pytest.mark.slow)
        for place, phase in enumerate(PHASES)
        for number, name in enumerate(NUMBERS)
    ],
)
def test_a_signal_in_any_phase_saves_and_the_run_goes_on(tmp_path, unbroken, phase, name, tried):
    run = trainer(tmp_path, measure_every=4, **GAME)
    PHASES[phase](run, NUMBERS[name])
    assert not run.train(), "it was asked to stop"
    stored = checkpoint.load(newest(tmp_path))
    assert stored.state["discriminator_updates"] == run.discriminator_updates
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert (told["reason"], told["detail"], told["step"]) == ("signal", name, run.step)
    assert told["checkpoint"] == str(stored.path)
    assert not (tmp_path / rundir.LOCK).exists()
    again = resumed(tmp_path, measure_every=4, **GAME)
    assert again.train()
    assert differing(unbroken, everything(again)) == set()
    assert not (tmp_path / "stopped.json").exists()
    tried(1)


class Judged:
    """Measures by a judge that learns first; the process is asked in the n-th of all batches."""

    better = {"spread": "less"}

    def __init__(self, number=None, batch=0):
        self.number, self.batch, self.judge, self.batches, self.after = number, batch, None, 0, 0

    def seen(self, network, given):
        self.batches += 1
        if self.batches == self.batch:
            os.kill(os.getpid(), self.number)
        found = network(given)
        self.after += 0 < self.batch <= self.batches
        return found

    def measure(self, generator):
        if self.judge is None:
            with torch.random.fork_rng(), torch.enable_grad():
                torch.manual_seed(0)
                learning = nn.Linear(2, 1)
                for _ in range(3):
                    self.seen(learning, torch.rand(4, 2)).sum().backward()
            self.judge = learning  # 3 batches, once
        made = [self.seen(generator, torch.full((4, 2), float(n))) for n in range(3)]
        logits = [self.seen(self.judge, part.flatten(1)) for part in made]
        return {"spread": float(torch.cat(logits).std())}  # 6 batches

    def report(self, generator):
        return f"spread {self.measure(generator)}"


BATCHES = {  # a measure is of the raw generator and of the average, which is the best at step 4
    "the judge learns": (2, 4),
    "the raw generator draws": (5, 4),
    "the judge looks at the average": (15, 4),
    "the last measure": (21, 8),
    "the report": (29, 8),
}


def judged(folder, evaluation, **options):
    monitor = Monitor(folder, 8, evaluation=evaluation, warmup=2, best="metric/spread")
    run = trainer(folder, monitor=monitor, measure_every=4, **{**GAME, **options})
    found = newest(folder)
    if found:
        run.resume(found)
    return run


def told_by(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]
    return plain, (folder / "report.txt").read_text()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    run = judged(folder, Judged())
    assert run.train()
    return everything(run), told_by(folder), (run.monitor.best.step, run.monitor.best.value)


def left_between_batches(folder, number, batch, step):
    """Ask a run in a batch of its measures: what it has done, and left as it was, until it ends."""
    run = judged(folder, Judged(number, batch))
    modes = [module.training for module in run.recipe.modules()]
    drawn = []
    leaving, run.stop.leaving = run.stop.leaving, lambda: watched(drawn, leaving())
    assert not run.train(), "it was asked to stop"
    assert run.monitor.evaluation.after == 0, "no further batch"
    assert [module.training for module in run.recipe.modules()] == modes
    assert all(drawn), "the random state is as it was"
    stored = checkpoint.load(newest(folder))
    assert (run.step, stored.step, stored.state["step"]) == (step, step, step)
    assert stored.state["owed"] is (batch < 29)
    told = json.loads((folder / "stopped.json").read_text())
    assert (told["reason"], told["step"]) == ("signal", step)
    assert not (folder / rundir.FINISHED).exists()
    assert not (folder / "report.txt").exists()


@contextmanager
def watched(drawn, block):
    before = torch.get_rng_state()
    with block:
        yield
    drawn.append(torch.equal(before, torch.get_rng_state()))


def goes_on(folder, measured):
    """The same command again: what differs from a run that was not asked."""
    run = judged(folder, Judged())
    assert run.train()
    state, told, best = measured
    found = differing(state, everything(run))
    found |= {"best"} if (run.monitor.best.step, run.monitor.best.value) != best else set()
    found |= {"told"} if told_by(folder) != told else set()
    found |= {"owed"} if checkpoint.load(newest(folder)).state["owed"] else set()
    return found | ({"stopped.json"} if (folder / "stopped.json").exists() else set())


@pytest.mark.row("P1", "asked between two batches of a measure: left without a trace, made again")
@pytest.mark.parametrize("place", BATCHES)
def test_a_measure_is_left_and_made_again(tmp_path, measured, place, tried):
    left_between_batches(tmp_path, signal.SIGTERM, *BATCHES[place])
    assert goes_on(tmp_path, measured) == set()
    tried(1)


class Chance(Judged):
    """Draws where it measures and where it reports, as dropout that stays on does."""

    def measure(self, generator):
        return {**super().measure(generator), "chance": float(torch.rand(()))}

    def report(self, generator):
        return f"{super().report(generator)} {float(torch.rand(()))}"


@pytest.mark.parametrize("place", BATCHES)
def test_a_measure_that_is_made_again_draws_what_it_would_have_drawn(tmp_path, place):
    assert judged(tmp_path / "whole", Chance()).train()
    batch, _ = BATCHES[place]
    assert not judged(tmp_path / "left", Chance(signal.SIGTERM, batch)).train()
    assert judged(tmp_path / "left", Chance()).train()
    lines, report = told_by(tmp_path / "whole")
    assert len({line["metric/chance"] for line in lines if "metric/chance" in line}) == 2
    assert told_by(tmp_path / "left") == (lines, report)


@pytest.mark.parametrize("protection", ["leaving", "owed"])
def test_without_it_a_measure_goes_on_or_is_not_made_again(
    tmp_path, measured, protection, monkeypatch
):
    if protection == "leaving":
        monkeypatch.setattr(Stop, "leaving", lambda stop: nullcontext())
        with pytest.raises(AssertionError, match="no further batch"):
            left_between_batches(tmp_path, signal.SIGTERM, 4, 4)
    else:
        left_between_batches(tmp_path, signal.SIGTERM, 4, 4)
        never = property(lambda monitor: False, lambda monitor, owed: None)
        monkeypatch.setattr(Monitor, "owed", never, raising=False)
        assert goes_on(tmp_path, measured) == {"told", "best"}


def test_a_signal_between_saves_writes_one_checkpoint_and_one_on_a_saved_step_none(tmp_path):
    for call, expected in ((2, 2), (1, 1)):
        run = trainer(tmp_path / str(call), steps=9, save_every=3)
        written = []
        write = run.saves.write
        run.saves.write = lambda *given, w=write, log=written: log.append(1) or w(*given)
        at(run.saves, "write", signal.SIGTERM, 1) if call == 1 else at(
            run, "play", signal.SIGTERM, 5
        )
        run.train()
        assert len(written) == expected


@pytest.mark.row("P1", "asked while the program starts: ends at once with what was there")
@pytest.mark.parametrize("found", ["nothing", "a checkpoint"])
def test_a_signal_at_the_start_saves_before_the_first_step(tmp_path, found, tried):
    if found == "a checkpoint":
        with warnings.catch_warnings(action="ignore"):
            trainer(tmp_path, **{**GAME, "steps": 4}).train()
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        run = resumed(tmp_path, **GAME) if found == "a checkpoint" else trainer(tmp_path, **GAME)
        run.stop = stop
        before = run.step
        assert not run.train()
    assert run.step == before
    if found == "a checkpoint":
        assert checkpoint.load(newest(tmp_path)).step == before
    tried(1)


@pytest.mark.parametrize("resume", ["auto", "never", "one/checkpoints/step-00000004"])
def test_a_stopped_run_says_by_which_command_it_goes_on(tmp_path, resume, capsys):
    run = trainer(tmp_path, **GAME)
    run.config = f"resume: {resume}\n"
    at(run, "play", signal.SIGTERM)
    assert not run.train()
    command = "the same command" + (" with resume=auto" if resume == "never" else "")
    assert f"stopped by SIGTERM; {command} goes on at step 2\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"is not empty: .*resume=auto"):
        rundir.previous(tmp_path, "never", {}, print)


def test_the_record_of_a_stop_is_gone_while_the_run_goes_on(tmp_path):
    """Or it would stand for a later end that leaves none."""
    run = trainer(tmp_path, **GAME)
    at(run, "play", signal.SIGTERM)
    assert not run.train()
    assert json.loads((tmp_path / "stopped.json").read_text())["step"] == 2
    again, there = resumed(tmp_path, **GAME), []
    play = again.play
    again.play = lambda: there.append((tmp_path / "stopped.json").exists()) or play()
    assert again.train()
    assert there == 6 * [False]


def test_the_record_of_an_end_stays_where_no_step_is_left(tmp_path):
    assert judged(tmp_path, Judged()).train()
    for record, number in ((rundir.FINISHED, signal.SIGTERM), ("stopped.json", None)):
        run, there = judged(tmp_path, Judged(number, 1 if number else 0)), []
        finish = run.monitor.finish

        def finishing(*given, record=record, there=there, finish=finish):
            there.append((tmp_path / record).exists())
            finish(*given)

        run.monitor.finish = finishing
        assert run.train() is (number is None)
        assert there == [True]


def slow_run(folder, there):
    """A process whose fifth step takes a minute; it writes to a pipe when it comes there."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it ends with the process
    run = trainer(folder, steps=10**6, save_every=3, log_every=10**6)
    play = run.play

    def slow():
        if run.step == 4:
            os.write(there, b".")
            time.sleep(60)
        play()

    run.play = slow
    try:
        run.train()
    finally:
        os._exit(1)


@pytest.mark.row("P4", "the second signal ends the process, <= 2 s; the checkpoint is whole")
@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_the_same_signal_again_stops_at_once(tmp_path, name, tried):
    there, come = os.pipe()
    child = slow_run(tmp_path, come)
    assert os.read(there, 1) == b"."
    os.kill(child, NUMBERS[name])
    time.sleep(0.3)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "the first lets the step finish"
    begun = time.monotonic()
    os.kill(child, NUMBERS[name])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -NUMBERS[name]
    assert time.monotonic() - begun < 2
    assert checkpoint.load(newest(tmp_path)).step == 3
    os.close(there)
    os.close(come)
    tried(1)


def meets(*names):
    """How a process ends that is sent these signals while a stop listens; 0 if it survives them."""
    child = os.fork()
    if not child:
        try:
            with Stop() as stop, stop:
                for name in names:
                    os.kill(os.getpid(), NUMBERS[name])
                os._exit(0 if stop.name == names[0] else 1)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.row("P4")
@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize("second", NUMBERS)
def test_a_second_signal_ends_unless_a_scheduler_asks_in_two_ways(first, second, tried):
    scheduler = {first, second} == {"SIGTERM", "SIGUSR1"}
    assert meets(first, second) == (0 if scheduler else -NUMBERS[second])
    if scheduler:
        assert meets(first, second, second) == -NUMBERS[second]
        assert meets(first, second, "SIGINT") == -signal.SIGINT
    tried(1)


def test_a_signal_before_a_run_interrupts_at_once():
    before = [signal.getsignal(number) for number in Stop.signals]
    for name, number in NUMBERS.items():
        with Stop() as stop:
            with pytest.raises(KeyboardInterrupt), stop.interrupting():
                os.kill(os.getpid(), number)
            assert stop.name == name
            with pytest.raises(KeyboardInterrupt), stop.interrupting():
                raise AssertionError("it was asked before")
    assert [signal.getsignal(number) for number in Stop.signals] == before


@pytest.mark.row("P6", "handlers are those from before, whatever ended the run")
def test_handlers_come_back_after_a_run(tmp_path, tried):
    before = [signal.getsignal(number) for number in Stop.signals]
    run = trainer(tmp_path, **GAME)
    at(run, "play", signal.SIGUSR1)
    run.train()
    broken = trainer(tmp_path / "b", **GAME)
    broken.play = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        broken.train()
    assert [signal.getsignal(number) for number in Stop.signals] == before
    tried(2)


def effects(source):
    """Calls inside functions given to signal.signal, apart from setting the next handler."""
    tree = ast.parse(inspect.cleandoc(source))
    handlers = {
        node.args[1].attr
        if isinstance(node.args[1], ast.Attribute)
        else getattr(node.args[1], "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "signal.signal"
    }
    return [
        ast.unparse(call)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in handlers
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) not in ("signal.signal", "signal.Signals")
    ]


@pytest.mark.row("P7", "handlers set a flag and do nothing else")
def test_handlers_do_nothing_but_set_a_flag(tried):
    assert effects(inspect.getsource(signals)) == []
    assert effects("signal.signal(2, save)\ndef save(number, frame):\n    trainer.save()") == [
        "trainer.save()"
    ]
    tried(1)


@pytest.mark.row("P5", "a save slower than a third of the grace is told once")
def test_a_slow_checkpoint_is_told_once(tmp_path, monkeypatch, tried):
    clock = iter(range(0, 10_000, 11))
    monkeypatch.setattr(saves.time, "monotonic", lambda: float(next(clock)))
    run = trainer(tmp_path, steps=6, save_every=2)
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if line.get("event") == "save"]
    assert "took 11 s" in event["text"]
    assert "USR1@120" in event["text"]
    tried(1)


@pytest.mark.slow
@pytest.mark.row("P5", "killed in a save that outlives the grace: the one before is whole")
def test_a_save_slower_than_the_grace_costs_itself_alone(tmp_path, tried):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        run = trainer(tmp_path, steps=10**6, save_every=4)

        def slow(descriptor):
            if run.stop:  # the disk crawls once the process is asked to end
                os.write(writer, b"s")
                time.sleep(60)

        os.fsync = slow
        try:
            run.train()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        while newest(tmp_path) is None:
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM)
        assert os.read(reader, 1) == b"s"
        time.sleep(0.2)  # the grace
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert any(name.startswith(".tmp-") for name in left)
    path = checkpoint.newest(tmp_path / "checkpoints", notice=pytest.fail)
    step = int(path.name.removeprefix("step-"))
    assert step % 4 == 0
    again = resumed(tmp_path, steps=step + 3)
    assert again.step == step
    assert again.train()
    assert not any(name.startswith(".tmp-") for name in os.listdir(tmp_path / "checkpoints"))
    tried(1)


# -- disks


@pytest.fixture
def free():
    """Give back what a test has taken."""
    yield
    for _, run_dir in list(rundir._held):
        rundir.release(run_dir)


def failing(monkeypatch, fails, code=errno.ENOSPC):
    """Checkpoints whose n-th writing fails where `fails(n)`."""
    write, count = checkpoint._write_folder, []

    def written(*given):
        count.append(1)
        if fails(len(count)):
            raise OSError(code, os.strerror(code))
        return write(*given)

    monkeypatch.setattr(checkpoint, "_write_folder", written)


@pytest.mark.row("K1", "a failed save leaves the last one, and training goes on")
def test_a_full_disk_is_told_and_training_goes_on(tmp_path, monkeypatch, tried):
    failing(monkeypatch, lambda n: n in (2, 3))
    run = trainer(tmp_path, steps=10, save_every=2, keep=10)
    assert run.train()
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step-*"))
    assert steps == [2, 8, 10]
    expected = trainer(tmp_path / "b", steps=10, save_every=10)
    expected.train()
    assert differing(everything(expected), everything(run)) == set()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = [line["text"] for line in lines if line.get("event") == "save"]
    assert len(events) == 2
    assert all("No space left" in e and "MiB needed" in e and "MiB free" in e for e in events)
    assert "(2 of 3 failures in a row)" in events[1]
    tried(2)


@pytest.mark.row("K1", "the third failure in a row stops the run, or the n-th that is asked for")
@pytest.mark.parametrize("allowed", [1, 3])
def test_saves_that_keep_failing_stop_the_run(tmp_path, monkeypatch, allowed, tried):
    failing(monkeypatch, lambda n: n > 1)
    run = trainer(tmp_path, steps=100, save_every=2, failed_saves=allowed)
    with pytest.raises(StorageError, match=f"No space left.*that was {allowed} times in a row"):
        run.train()
    assert run.step == 2 + 2 * allowed
    assert checkpoint.load(newest(tmp_path)).step == 2
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert told["reason"] == "storage"
    assert told["checkpoint"].endswith("step-00000002")
    tried(1)


@pytest.mark.row("K1", "the last checkpoint of a run that cannot be written is an error")
def test_the_last_checkpoint_must_be_there(tmp_path, monkeypatch, tried):
    failing(monkeypatch, lambda n: True)
    run = trainer(tmp_path, steps=3, save_every=100)
    with pytest.raises(StorageError, match="that was the last checkpoint of the run"):
        run.train()
    assert json.loads((tmp_path / "stopped.json").read_text())["reason"] == "storage"
    tried(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its writer
@pytest.mark.row("K4", "the run folder is made again with a warning, and nothing loops")
def test_a_run_folder_that_is_removed_is_made_again(tmp_path, tried):
    folder = tmp_path / "run"
    run = trainer(folder, steps=8, log_every=1, save_every=4)
    run.config = "seed: 1\n"
    play = run.play

    def removing():
        if run.step == 5:
            run.monitor.log._board.flush()  # or its thread may write into what is being removed
            shutil.rmtree(folder)
        play()

    run.play = removing
    with pytest.warns(UserWarning, match="was removed while training"):
        assert run.train()
    assert checkpoint.load(newest(folder)).step == 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 7, 8]
    assert (folder / "config.yaml").read_text() == run.config
    tried(1)


def test_a_lock_that_a_full_disk_has_no_room_for_is_not_held(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(system, "pwrite", full)
        with pytest.raises(ConfigError, match="cannot be written .No space left"):
            rundir.hold(tmp_path)
    assert not [*tmp_path.iterdir()]
    rundir.hold(tmp_path)
    rundir.release(tmp_path)


def removed_at(run, step, then):
    """Remove a run's directory before a step, do something, and look when two more are done."""
    play, seen = run.play, []

    def removing():
        if run.step == step:
            run.monitor.log._board.flush()  # or its thread may write into what is being removed
            shutil.rmtree(run.monitor.run_dir)
            seen.append(then(run.monitor.run_dir))
        if run.step == step + 2:
            seen.append(taken(run.monitor.run_dir))
        play()

    run.play = removing
    return seen


def taken(folder):
    """Whether another start would be refused."""
    try:
        Lock(folder / rundir.LOCK).release()
    except HeldError:
        return True
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its writer
@pytest.mark.parametrize("every", [{"log_every": 1}, {"save_every": 2}])
def test_a_run_folder_that_is_removed_is_held_again(tmp_path, free, every):
    """From the next line of the log, or the next checkpoint."""
    folder = tmp_path / "run"
    run = trainer(folder, **{"steps": 8, "log_every": 4, "save_every": 8, **every})
    folder.mkdir()
    rundir.hold(folder)
    seen = removed_at(run, 4, lambda folder: folder.exists())
    with pytest.warns(UserWarning, match="was removed while training"):
        assert run.train()
    assert seen == [False, True]
    assert checkpoint.load(newest(folder)).step == 8
    assert not (folder / rundir.LOCK).exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its writer
@pytest.mark.filterwarnings("ignore:logging to .* failed")  # what is left to write, at the end
@pytest.mark.parametrize("every", [{"log_every": 1}, {"save_every": 2}])
def test_a_run_whose_folder_another_has_by_now_stops_and_writes_nothing_there(
    tmp_path, free, every
):
    folder = tmp_path / "run"
    run = trainer(folder, **{"steps": 8, "log_every": 4, "save_every": 8, **every})
    folder.mkdir()
    rundir.hold(folder)
    others = []

    def taking(folder):
        folder.mkdir()
        others.append(Lock(folder / rundir.LOCK))

    removed_at(run, 4, taking)
    with pytest.raises(rundir.TakenError, match=rf"run_dir={folder} was removed.* in use by proc"):
        run.train()
    assert run.step in (5, 6)
    assert [path.name for path in folder.iterdir()] == [rundir.LOCK]
    assert taken(folder)
    others[0].release()


# -- stopped.json for everything else


@pytest.mark.row("P1", "stopped.json says why a run ended")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("x"), "error"),
        (TimeoutError("no batch"), "stall"),
        (KeyboardInterrupt(), "signal"),
    ],
)
def test_the_reason_of_an_end_is_written(tmp_path, error, reason, tried):
    run = trainer(tmp_path, steps=9, save_every=2)
    play = run.play

    def broken():
        if run.step == 5:
            raise error
        play()

    run.play = broken
    with pytest.raises(type(error)):
        run.train()
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert (told["reason"], told["step"]) == (reason, 5)
    assert told["checkpoint"].endswith("step-00000004")
    assert run.stream.closed
    tried(1)


# -- who owns a run directory


def start(folder, go, end, results):
    """A process that tries to take a run directory when the others do."""
    child = os.fork()
    if not child:
        os.read(go, 1)
        try:
            rundir.hold(folder)
            os.write(results, b"+")
            os.read(end, 1)  # until all have tried
        except ConfigError as error:
            os.write(results, b"-" if "in use by process" in str(error) else b"?")
        os._exit(0)
    return child


@pytest.mark.slow
@pytest.mark.row("F5", "50 starts at once: 1 winner, the others name it")
def test_of_many_starts_in_one_folder_one_wins(tmp_path, tried):
    go, gone = os.pipe()
    end, ended = os.pipe()
    done, results = os.pipe()
    children = [start(tmp_path, go, end, results) for _ in range(50)]
    os.write(gone, b"." * 50)
    answers = b"".join(os.read(done, 1) for _ in range(50))
    os.write(ended, b".")
    for child in children:
        os.waitpid(child, 0)
    for pipe in (go, gone, end, ended, done, results):
        os.close(pipe)
    assert sorted(answers) == sorted(b"+" + b"-" * 49)
    tried(50)


@pytest.mark.row("F5", "the holder is named; a dead one's lock is taken over")
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, free, tried):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        rundir.hold(tmp_path)
        os.write(tell, b".")
        time.sleep(60)
    os.read(ready, 1)
    with pytest.raises(
        ConfigError, match=rf"run_dir={tmp_path} is in use by process {child} on .*run_dir"
    ):
        rundir.hold(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / rundir.LOCK).exists()
    rundir.hold(tmp_path)
    rundir.release(tmp_path)
    assert not (tmp_path / rundir.LOCK).exists()
    for end in (ready, tell):
        os.close(end)
    tried(1)


@pytest.mark.row("F5", "a folder that cannot be written is named")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, free, monkeypatch, tried):
    def refuse(*given, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(rundir, "Lock", refuse)
    with pytest.raises(
        ConfigError, match=r"cannot be written \(Permission denied\): choose another"
    ):
        rundir.hold(tmp_path)
    tried(1)


def test_a_folder_that_another_run_has_filled_meanwhile_is_refused(tmp_path, free):
    trainer(tmp_path, **GAME).train()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="was used by another run meanwhile"):
        rundir.hold(tmp_path, fresh=True)


# -- during the warm-up


@pytest.mark.row("T2", "a long warm-up is logged and saved by its own updates")
def test_a_warmup_is_logged_and_saved(tmp_path, tried):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"steps": 3, "discriminator_warmup": 20, "log_every": 5, "save_every": 10}
    run = trainer(tmp_path, **options)
    at(run.discriminator, "update", signal.SIGTERM, 13)
    assert not run.train()
    assert run.discriminator_updates == 13
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["discriminator_updates"]) for line in lines] == [(0, 5), (0, 10)]
    assert all("discriminator/adversarial" in line for line in lines)
    assert checkpoint.load(newest(tmp_path)).state["discriminator_updates"] == 13
    again = resumed(tmp_path, **options)
    assert again.train()
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert differing(everything(whole), everything(again)) == set()
    for folder in (tmp_path, tmp_path / "whole"):
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        steps = [event.step for event in events.Scalars("discriminator/adversarial")]
        assert steps == [-15, -10, -5, 0, 3]
    tried(1)


def test_a_save_in_the_warmup_replaces_the_one_before(tmp_path):
    run = trainer(tmp_path, steps=1, discriminator_warmup=9, save_every=3)
    run.train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000000", "step-00000001"]
    assert torch.isfinite(torch.tensor(run.step))


def test_a_run_without_measures_owes_none(tmp_path):
    assert not judged(tmp_path, Judged(signal.SIGTERM, 21)).train()
    run = trainer(tmp_path, monitor=Monitor(tmp_path, 8, warmup=2), measure_every=4, **GAME)
    run.resume(newest(tmp_path))
    assert run.train()
    assert not run.monitor.owed


def test_a_finished_run_that_is_asked_in_its_report_again_is_not_finished(tmp_path):
    assert judged(tmp_path, Judged()).train()
    assert not judged(tmp_path, Judged(signal.SIGTERM, 1)).train()
    there = [(tmp_path / name).exists() for name in (rundir.FINISHED, "stopped.json")]
    assert there == [False, True]
    assert judged(tmp_path, Judged()).train()
    there = [(tmp_path / name).exists() for name in (rundir.FINISHED, "stopped.json")]
    assert there == [True, False]


@pytest.mark.parametrize("owner", ["stream", "monitor"])
def test_a_run_whose_files_cannot_be_closed_gives_its_folder_back(
    tmp_path, free, monkeypatch, owner
):
    rundir.hold(tmp_path)
    run = trainer(tmp_path, steps=1)
    monkeypatch.setattr(getattr(run, owner), "close", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert not rundir._held


def test_a_trace_that_cannot_be_written_does_not_hide_why_a_run_ended(tmp_path, monkeypatch):
    def full(profile):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gan.run.profiling.Profile.close", full)
    run = trainer(tmp_path, Numbers(alter=lambda batch, position: 1 / 0), steps=1)
    with pytest.raises(ZeroDivisionError):
        run.train()
    assert "the trace could not be written" in (tmp_path / "metrics.jsonl").read_text()
