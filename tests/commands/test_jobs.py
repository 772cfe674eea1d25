"""Jobs of several processes: started by the job, or by submitit as its tasks."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm
import torch
from shared import SMALL, ended, last, waited_for

from gan import distributed
from gan.build import build
from gan.commands import composing, ranks, sweep, train
from gan.commands.composing import UsageError
from gan.commands.ranks import DIVERGED, DONE, FAILED, LOST, MISTAKE, STOPPED, RankError, Ranks
from gan.registry import ConfigError
from gan.run.signals import Stop

# -- processes that a run starts


@pytest.fixture
def started(monkeypatch):
    """Ranks that run a script, which knows `rank` and what it is told, instead of training."""

    def start(script, stop=None, **values):
        read = "import os, sys\nrank = os.environ['RANK']\nread = sys.stdin.readline\n"
        monkeypatch.setattr(ranks, "COMMAND", ("-S", "-c", read + script))
        return Ranks(values, 2, Stop() if stop is None else stop)

    return start


def test_ranks_are_given_all_values_and_are_told_apart(started, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c,GPU-d")
    names = "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_USE_AGENT_STORE"
    found = started(
        f"given = read(), [os.environ[name] for name in {names}]\n"
        f"open({str(tmp_path)!r} + '/' + rank, 'w').write(repr(given))",
        n_critic={0: 5, 1000: 1},
        lr=1e-5,
        processes=2,
        name="1e-5",
    )
    found.devices = [2, 3]
    assert found.train() is True
    for rank in "01":
        line, named = literal_eval((tmp_path / rank).read_text())
        assert ranks.yaml.safe_load(json.loads(line)) == {
            "n_critic": {0: 5, 1000: 1},
            "lr": 1e-5,
            "processes": 1,
            "name": "1e-5",
        }
        assert named == [rank, "2", "GPU-c,GPU-d", "True"]


def test_what_ranks_say_is_said_by_the_starter(started):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        started("print('ü' + rank); print('bad', file=sys.stderr)").train()
    assert sorted(out.getvalue().split()) == ["ü0", "ü1"]
    assert err.getvalue() == "bad\nbad\n"


def test_the_first_that_fails_by_itself_is_named(started):
    with pytest.raises(RankError, match=f"^rank 1 ended with status {MISTAKE}$") as raised:
        started(f"sys.exit({MISTAKE} if rank == '1' else {LOST})").train()
    assert raised.value.status == MISTAKE
    with pytest.raises(RankError, match=f"^rank 0 ended with status {LOST}$"):
        started(f"sys.exit({LOST})").train()
    with pytest.raises(RankError, match="^rank 1 was killed by signal 9$"):
        started("rank == '1' and os.kill(os.getpid(), 9)").train()


def test_one_that_does_not_end_with_the_others_is_killed(started, monkeypatch):
    monkeypatch.setattr(ranks, "GRACE", 0.2)
    begun = time.monotonic()
    with pytest.raises(RankError, match="^rank 0 ended with status 1$"):
        started("rank == '1' and [read() for _ in range(2)]; sys.exit(1)").train()
    assert time.monotonic() - begun < 10


def test_ranks_are_asked_to_stop_by_name_and_once(started):
    stop = Stop()
    stop.name = "SIGUSR2"
    script = f"read(); sys.exit({STOPPED} if read() == 'SIGUSR2\\n' else 1)"
    assert started(script, stop).train() is False
    assert started(f"sys.exit({DONE})", stop).train() is True  # too late


def test_a_rank_ends_with_its_starter():
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(reading, 0)
        os.close(writing)
        with Stop() as stop:
            ranks._obey(io.FileIO(0), stop)
        os._exit(0)
    os.close(reading)
    os.write(writing, b"SIGTERM\n")
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == FAILED


@pytest.mark.parametrize("left", ["interrupted", "left alone by the first process"])
def test_a_rank_that_is_told_to_stop_leaves_what_it_builds(left, monkeypatch):
    def built(values, stop):
        with stop.interrupting() if left == "interrupted" else contextlib.nullcontext():
            waited_for(lambda: stop)
        raise distributed.FirstError("which stopped as well")

    monkeypatch.setattr(train, "built", built)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(reading, 0)
        monkeypatch.setattr(sys, "stdin", os.fdopen(0, closefd=False))
        os._exit(ranks.main())
    os.close(reading)
    os.write(writing, json.dumps("seed: 1").encode() + b"\nSIGINT\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STOPPED
    os.close(writing)


@pytest.mark.parametrize("direct", [True, False])
def test_a_rank_that_trains_is_asked_once_by_its_starter_and_a_signal_to_all(direct, monkeypatch):
    def train_on():
        if direct:  # as a scheduler does that signals every process of a job
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the starter's word comes, and is no second signal
        return False

    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        monkeypatch.setattr(train, "built", lambda *_: SimpleNamespace(train=train_on))
        os.dup2(reading, 0)
        monkeypatch.setattr(sys, "stdin", os.fdopen(0, closefd=False))
        os._exit(ranks.main())
    os.close(reading)
    os.write(writing, json.dumps("seed: 1").encode() + b"\n")
    time.sleep(0.2)
    os.write(writing, b"SIGTERM\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STOPPED
    os.close(writing)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (True, DONE),
        (False, STOPPED),
        (ConfigError("seed"), MISTAKE),
        (FloatingPointError("seed"), DIVERGED),
        (distributed.PeerError("seed"), LOST),
        (distributed.FirstError("which has said why"), LOST),
        (RuntimeError("seed"), FAILED),
    ],
)
def test_how_a_rank_ends_is_its_status_and_is_told(end, status, monkeypatch, capsys):
    def built(values, stop):
        assert values == {"seed": 1}
        if isinstance(end, Exception):
            raise end
        return SimpleNamespace(train=lambda: end)

    reading, writing = os.pipe()
    os.write(writing, json.dumps("seed: 1").encode() + b"\n")
    monkeypatch.setattr(train, "built", built)
    monkeypatch.setattr(ranks, "_obey", lambda orders, stop: None)
    with os.fdopen(reading) as orders:
        monkeypatch.setattr(sys, "stdin", orders)
        assert ranks.main() == status
    os.close(writing)
    assert ("seed" in capsys.readouterr().err) == (
        isinstance(end, Exception) and not isinstance(end, distributed.FirstError)
    )


def test_a_search_knows_that_ranks_have_diverged():
    assert train._diverged(RankError(0, DIVERGED))
    assert not train._diverged(RankError(0, FAILED))
    assert not train._diverged(None)


def test_joblibs_workers_share_the_devices_among_jobs_of_several_processes():
    numbers = [sweep.devices_of(f"LokyProcess-{n}", 5, 2) for n in (1, 2, 3)]
    assert numbers == [[0, 1], [2, 3], [0, 1]]
    assert sweep.devices_of("LokyProcess-2", 3, 2) == []  # for one such job at a time
    assert sweep.devices_of("MainProcess", 8, 2) == []


@pytest.mark.parametrize(("count", "started"), [(0, 1), ("two", 1), (2, 2)])
def test_a_number_of_processes_that_cannot_be_is_refused(count, started, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: started)
    with pytest.raises((UsageError, ConfigError), match="processes"):
        train.built({"processes": count}, Stop())


def test_a_multirun_under_torchrun_is_refused(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(composing.distributed, "size", lambda: 2)
    monkeypatch.setattr(composing.distributed, "first", contextlib.nullcontext)
    assert train.main(["-m", "seed=0,1"]) == 2
    assert "train.py -m processes=2" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


# -- tasks of submitit

LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "77",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}
SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "80",
    "SLURM_ARRAY_JOB_ID": "77",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
NAMES = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"


@pytest.fixture
def task(monkeypatch):
    """The variables of ranks that a task with these of submitit's gets."""
    pytest.importorskip("submitit")

    def joined(**given):
        monkeypatch.setattr(os, "environ", {**given})
        sweep.join_tasks()
        return {name: os.environ.get(name) for name in NAMES}

    return joined


def test_tasks_of_a_job_are_ranks(task):
    local = task(**LOCAL)
    assert (local["RANK"], local["LOCAL_RANK"], local["WORLD_SIZE"]) == ("1", "1", "2")
    assert local == task(**LOCAL)  # they agree on the port
    slurm = task(**SLURM)
    assert (slurm["RANK"], slurm["LOCAL_RANK"], slurm["WORLD_SIZE"]) == ("3", "1", "4")
    assert slurm["MASTER_ADDR"] == "node07"
    port = slurm["MASTER_PORT"]
    other = {**SLURM, "SLURM_PROCID": "0", "SLURM_JOB_ID": "81"}
    assert task(**other)["MASTER_PORT"] == port
    assert task(**{**SLURM, "SLURM_ARRAY_TASK_ID": "4"})["MASTER_PORT"] != port
    assert task(**SLURM, SLURM_GPUS_PER_TASK="1")["LOCAL_RANK"] == "0"


def test_a_single_task_or_a_rank_that_is_named_already_is_left_as_it_is(task):
    assert task(**{**LOCAL, "SUBMITIT_LOCAL_NTASKS": "1"}) == dict.fromkeys(NAMES)
    assert task(**LOCAL, WORLD_SIZE="1", RANK="0")["RANK"] == "0"
    assert task(SLURM_NTASKS="4") == dict.fromkeys(NAMES)  # a job that is none of submitit's


def test_the_first_task_keeps_the_record_and_all_tell_why(tmp_path, monkeypatch):
    call = sweep.begin()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(sweep.JobError), sweep.recorded(tmp_path, "job"):
        raise distributed.PeerError("rank 1 waited for rank 0")
    with pytest.raises(sweep.JobError), sweep.recorded(tmp_path, "job"):
        raise distributed.FirstError("which has said why")
    assert sweep.jobs(tmp_path, call) == {}
    assert (tmp_path / "job.log").read_text() == "rank 1 waited for rank 0\n"


def test_how_a_rank_has_failed_is_how_the_job_has(tmp_path):
    call = sweep.begin()
    for name, status in (("wrong", MISTAKE), ("killed", -9)):
        with pytest.raises(sweep.JobError), sweep.recorded(tmp_path, name):
            raise RankError(1, status)
    assert sweep.jobs(tmp_path, call) == {"killed": "failed", "wrong": "mistake"}
    assert (tmp_path / "killed.log").read_text() == "rank 1 was killed by signal 9\n"


# -- whole sweeps


@pytest.fixture
def command(script):
    """Start `train.py` as a process of its own, in an empty directory."""

    def start(*arguments, multirun=True, **variables):
        given = [*["-m"] * multirun, *SMALL, "sweep=all", *arguments]
        return script(*given, **variables)

    return start


def living(folder):
    """The other processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if (process / "cwd").readlink() == folder and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text())
    return found


def steps(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "generator/adversarial" in line]


TWO = {
    "basic": ["processes=2"],
    "joblib": ["processes=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": ["processes=2", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"],
}


def launched(launcher):
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    return TWO[launcher]


FAULTY = """
import os, pathlib
from gan.recipes.synthesis import Synthesis
from gan.registry import register

@register("recipe", "faulty", given=("generator", "discriminator", "adversarial", "penalties"))
class Faulty(Synthesis):
    def generator_losses(self, batch, fakes, step):
        if step == 5 and os.environ["RANK"] == "1":
            try:
                pathlib.Path("killed").touch(exist_ok=False)
                os.kill(os.getpid(), 9)
            except FileExistsError:  # one is enough
                pass
        return super().generator_losses(batch, fakes, step)
"""


@pytest.fixture
def by_one_process(composed, glyph_store):
    """The weights after 8 steps of seed 0 in this very process."""
    given = [*SMALL, f"data.path={glyph_store}", "trainer.steps=8", "run_dir=one"]
    trainer = build(composed(*given), lambda said: None)
    for _ in range(8):
        trainer.play()
    trainer.save()
    trainer.stream.close()
    return last(Path("one")).networks


@pytest.mark.slow
@pytest.mark.parametrize("launcher", TWO)
def test_jobs_of_two_ranks_of_which_one_is_killed(command, tmp_path, launcher, by_one_process):
    (tmp_path / "faulty.py").write_text(FAULTY)
    given = ["plugins=[faulty]", "recipe=faulty", "trainer.steps=8", "trainer.save_every=2"]
    count = 1 if launcher == "submitit" else 2  # it waits for no other job once a task has died
    given += [*launched(launcher), "seed=0,1" if count == 2 else "seed=0"]
    status, said = ended(command(*given))
    assert status == 1, said
    assert f"gan: 1 of {count} jobs failed" in said
    told = "rank 1 does not answer" if launcher == "submitit" else "rank 1 was killed by signal 9"
    assert told in said.partition("jobs failed")[2]
    waited_for(lambda: not living(tmp_path), 60)  # Ray takes its own down a little later
    status, said = ended(command(*given))
    assert status == 0, said
    assert f"| all  | {count} " in said
    logs = [path.read_text() for path in tmp_path.glob("runs/all/*.log")]
    assert sum(" goes on at step 4" in log for log in logs) == 1
    assert sum(" is finished" in log for log in logs) == count - 1
    assert [log.count("step 8/8") for log in logs] == [1] * count  # one rank speaks
    runs = sorted(path.parent for path in tmp_path.glob("runs/all/*/checkpoints"))
    assert [steps(run) for run in runs] == [[*range(1, 9)]] * count
    (first,) = (run for run in runs if "seed: 0\n" in (run / "config.yaml").read_text())
    found = last(first)
    assert found.manifest["facts"]["processes"] == 2
    for name, tensor in by_one_process.items():
        torch.testing.assert_close(found.networks[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "submitit"])
def test_a_mistake_is_told_once_as_such(command, tmp_path, launcher):
    status, said = ended(command(*launched(launcher), "seed=-1"))
    assert status == 2, said
    assert "gan: 1 of 1 jobs failed" in said
    assert said.partition("jobs failed")[2].count("seed must be at least 0") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_alone_starts_its_processes_too(command, tmp_path):
    given = ["processes=2", "trainer.steps=2", "run_dir=run"]
    status, said = ended(command(*given, multirun=False))
    assert status == 0, said
    assert said.count("step 2/2") == 1
    assert last(tmp_path / "run").manifest["facts"]["processes"] == 2
    status, said = ended(command(*given, "trainer.batch_size=7", multirun=False))
    assert status == 2, said
    assert said.count("gan: trainer.batch_size=7 cannot be split over 2 processes") == 1
    assert len(said.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("basic", signal.SIGINT),
        ("basic", signal.SIGKILL),
        ("joblib", signal.SIGINT),
        ("joblib", signal.SIGTERM),
    ],
)
def test_a_sweep_that_is_ended_leaves_no_process_and_goes_on_later(
    command, tmp_path, launcher, number
):
    jobs = 2 if launcher == "joblib" else 1  # an idle worker of joblib's would live for minutes
    seeds = ",".join(map(str, range(jobs)))
    given = [*launched(launcher), "trainer.steps=300", "trainer.save_every=2", f"seed={seeds}"]
    child = command(*given)
    waited_for(lambda: len([*tmp_path.glob("runs/all/*/metrics.jsonl")]) == jobs)
    logs = sorted(tmp_path.glob("runs/all/*/metrics.jsonl"))
    waited_for(lambda: all(log.read_text().count("\n") > 3 for log in logs))
    child.send_signal(number)
    status, said = ended(child)
    assert status != 0, said
    waited_for(lambda: not living(tmp_path), 60)
    done = [last(log.parent).step for log in logs]
    assert max(done) < 300
    if (launcher, number) in (("basic", signal.SIGINT), ("joblib", signal.SIGTERM)):  # they saved
        for log, step in zip(logs, done, strict=True):
            assert json.loads((log.parent / "stopped.json").read_text())["detail"] == number.name
            assert step == steps(log.parent)[-1]
    if number != signal.SIGTERM:
        return  # they go on alike
    status, said = ended(command(*given))
    assert status == 0, said
    for log, step in zip(logs, done, strict=True):
        assert f" goes on at step {step}" in said
        assert steps(log.parent) == [*range(1, 301)]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_preempted_job_of_two_tasks_is_submitted_again_and_goes_on(command, tmp_path, cluster):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    slurm.install(tmp_path / "slurm")
    path = os.pathsep.join([str(tmp_path / "slurm"), os.environ["PATH"]])
    layout = {"local": "hydra.launcher.tasks_per_node=2", "slurm": "hydra.launcher.nodes=2"}
    given = [f"hydra/launcher=submitit_{cluster}", layout[cluster], "trainer.steps=60"]
    child = command(*given, "seed=0", PATH=path)
    (log,) = waited_for(lambda: [*tmp_path.glob("runs/all/*/metrics.jsonl")])
    waited_for(lambda: log.read_text().count("\n") > 3)
    holder = (log.parent / ".lock").read_text().split()[1]
    parent = Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()[1]
    tasks = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(tasks) == 2
    for task in tasks:
        os.kill(int(task), signal.SIGUSR2)
    status, said = ended(child)
    assert status == 0, said
    text = log.parent.with_name(f"{log.parent.name}.log").read_text()
    assert text.count("stopped by SIGUSR2") == 1
    assert "goes on at step" in text
    assert steps(log.parent) == [*range(1, 61)]
    assert "| all  | 1 " in said
    waited_for(lambda: not living(tmp_path), 60)
