"""What works where Python lacks what it has on Linux: in processes that `systems/` takes it from.

A real Windows differs in more than can be taken away here, and LMDB and torch are Linux's.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gan import disk, system

ROOT = Path(__file__).parents[1]
BARE = f"""
import sys, types
package = types.ModuleType("gan")
package.__path__ = [{str(ROOT / "gan")!r}]
sys.modules["gan"] = package  # without what importing it would import, which takes seconds
"""
HEAVY = "torch._dynamo torch.export torch.utils.tensorboard torchvision"  # seconds to import
LATIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1252"}
TINY = [
    *("model=wnet", "image.size=16", "generator.width=2", "discriminator.width=2", "run_dir=run"),
    *("recipe.feature=0", "trainer.batch_size=8", "trainer.log_every=1", "trainer.judges=false"),
]


def environment(lacks, **more):
    places = [ROOT / "tests" / "systems", ROOT]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONWARNDEFAULTENCODING": "1",
        "OMP_NUM_THREADS": "1",
        "GAN_LACKS": lacks,
        **more,
    }


@pytest.fixture
def there(tmp_path):
    """Run Python on such a system: `there("windows", "-c", code)` gives its output."""

    def run(lacks, *command, said="", **more):
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment(lacks, **more),
            input=said,
            capture_output=True,
            encoding="cp1252" if "PYTHONIOENCODING" in more else "utf-8",
            timeout=600,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stderr + ended.stdout

    return run


@pytest.fixture
def bare(there):
    """The same with no more of `gan` than the code imports."""
    return lambda lacks, code: there(lacks, "-c", BARE + textwrap.dedent(code))


systems = pytest.mark.parametrize("lacks", ["windows", "macos"])

LACKED = re.compile(
    r"import (fcntl|resource|msvcrt|termios|pwd|grp)\b"
    r"|\bos\.(register_at_fork|pread|pwrite|sysconf|getloadavg|kill|killpg|sched_getaffinity)\b"
    r"|\bos\.(fork|statvfs|getuid|setsid|uname|mkfifo|O_CLOEXEC|O_NONBLOCK|O_NOFOLLOW)\b"
    r"|\bsignal\.(SIGUSR1|SIGUSR2|SIGHUP|SIGKILL|SIGALRM|pthread_\w+)\b"
    r"|NamedTemporaryFile"  # on Windows nobody else can open one
)


def test_one_room_knows_what_systems_differ_in():
    for path in (ROOT / "gan").rglob("*.py"):
        if path != Path(system.__file__):
            found = LACKED.search(path.read_text("utf-8"))
            assert found is None, f"{path}: {found and found[0]}"
    assert len(LACKED.findall(Path(system.__file__).read_text("utf-8"))) > 4


def test_nothing_is_lacking_here_and_all_is_as_python_has_it():
    assert system.POSIX
    assert (system.pread, system.pwrite) == (os.pread, os.pwrite)
    assert system.flags("O_CLOEXEC", "O_NONBLOCK") == os.O_CLOEXEC | os.O_NONBLOCK
    assert system.cores() == len(os.sched_getaffinity(0))
    assert system.memory() > 1 << 28
    assert [number.name for number in system.STOPS] == ["SIGINT", "SIGTERM", "SIGUSR1"]
    assert (system.APART, system.STORE, disk.PAUSES) == ({"process_group": 0}, {}, ())


def test_what_ended_a_process_is_named():
    assert system.ended_by(0) == system.ended_by(1) == ""
    assert system.ended_by(-11) == "SIGSEGV"
    assert system.ended_by(0xC0000005) == "0xc0000005"  # an access violation on Windows


@systems
def test_the_machine_is_asked_as_far_as_it_answers(bare, lacks):
    said = bare(
        lacks,
        """
        import json
        from gan import system
        print(json.dumps([
            system.POSIX, system.cores(), system.memory() > 1, system.waits() >= 0,
            system.of_children() >= 0, system.load() is None, [n.name for n in system.STOPS],
        ]))
        system.after_fork(after_in_child=print)
        """,
    )
    posix, cores, *rest = json.loads(said)
    assert cores == os.cpu_count()
    stops = ["SIGINT", "SIGTERM", *["SIGUSR1"] * posix]
    assert [posix, *rest] == [lacks == "macos", True, True, True, not posix, stops]


@systems
def test_one_process_has_a_lock_and_the_next_learns_who(bare, lacks, tmp_path):
    """Also within a process; a lock that was given up leaves nothing, that of a dead one a name."""
    second = textwrap.dedent(BARE) + textwrap.dedent(
        """
        import os
        from pathlib import Path
        from gan.locks import HeldError, Lock
        try:
            lock = Lock(Path("lock"))
            print(os.getpid(), "has it after", repr(lock.stale), flush=True)
            os._exit(0)
        except HeldError as error:
            print("held by", error)
        """
    )
    said = bare(
        lacks,
        f"""
        import os, subprocess, threading
        from pathlib import Path
        from gan import system
        from gan.locks import HeldError, Lock

        def other():
            command = [sys.executable, "-c", {second!r}]
            return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()

        path = Path("lock")
        lock = Lock(path)
        assert lock.in_place() and not lock.stale
        assert other().startswith(f"held by process {{os.getpid()}} on "), other()
        try:
            Lock(path)
        except HeldError as error:
            assert str(os.getpid()) in str(error)
        else:
            raise AssertionError("twice")
        lock.release()
        assert not path.exists()
        dead = other()
        assert "has it after ''" in dead, dead
        lock = Lock(path)
        assert lock.stale.startswith(f"process {{dead.split()[0]}} on "), lock.stale
        lock.release()

        with open("plain", "ab") as first, open("plain", "ab") as second:
            system.lock(first.fileno())
            try:
                system.lock(second.fileno())
            except BlockingIOError:
                threading.Timer(0.3, first.close).start()
                system.lock(second.fileno(), wait=True)
                assert first.closed
            else:
                raise AssertionError("twice")
        print("done")
        """,
    )
    assert said.strip() == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_lock_file_that_another_process_looks_at_may_stay_but_says_nothing(bare, tmp_path):
    said = bare(
        "windows",
        """
        from pathlib import Path
        from gan.locks import Lock
        path = Path("lock")
        lock = Lock(path)
        with path.open("rb") as looking:
            assert looking.read().startswith(b"process ")
            lock.release()
        assert path.read_bytes() == b""
        assert Lock(path).stale == ""
        print("done")
        """,
    )
    assert said.strip() == "done"


def test_bytes_are_read_and_written_where_they_are_and_as_they_are(bare, tmp_path):
    content = np.random.default_rng(0).bytes(1 << 16) + b"\r\n\x1a" * 400
    (tmp_path / "bytes").write_bytes(content)
    said = bare(
        "windows",
        """
        import os, random
        from concurrent.futures import ThreadPoolExecutor
        from gan import system
        content = open("bytes", "rb").read()
        descriptor = os.open("bytes", os.O_RDWR | system.flags("O_CLOEXEC", "O_NONBLOCK"))

        def right(seed):
            start = random.Random(seed).randrange(len(content))
            return system.pread(descriptor, 999, start) == content[start : start + 999]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, range(3000)))
        assert system.pwrite(descriptor, b"a\\nb", 7) == 3
        assert system.pread(descriptor, 5, 6) == content[6:7] + b"a\\nb" + content[10:11]
        assert system.pread(descriptor, 9, len(content)) == b""
        print("done")
        """,
    )
    assert said.strip() == "done"


def test_files_are_whole_and_on_the_disk_where_folders_cannot_be_opened(bare, tmp_path):
    said = bare(
        "windows",
        """
        import os
        from pathlib import Path
        from gan import disk
        synced = []
        fsync = os.fsync
        os.fsync = lambda descriptor: (synced.append(descriptor), fsync(descriptor))
        disk.put(Path("bytes"), b"\\r\\n")
        disk.put(Path("bytes"), b"\\n\\x1a")
        disk.replace(Path("text"), "\\u5c1a\\n")
        assert len(synced) == 3
        disk.sync(Path("."))
        tries, pauses = [], []
        disk.time.sleep = pauses.append

        def held_twice(source, target):
            tries.append(source)
            if len(tries) < 3:
                raise PermissionError
            os.replace(source, target)

        disk.move(held_twice, Path("bytes"), Path("moved"))
        assert len(pauses) == 2

        def held(source, target):
            raise PermissionError("held")

        try:
            disk.move(held, Path("moved"), Path("bytes"))
        except PermissionError as error:
            print(error)
        """,
    )
    assert said.strip() == "held"
    assert (tmp_path / "moved").read_bytes() == b"\n\x1a"
    assert (tmp_path / "text").read_bytes() == "尚\n".encode()


def test_a_rank_that_is_told_to_stop_is_not_ended_at_once(bare):
    said = bare(
        "windows",
        """
        import signal, threading, time
        from gan import system
        heard = []
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        thread = threading.Thread(target=system.send, args=(signal.SIGTERM,))
        thread.start()
        thread.join()
        time.sleep(0.01)
        print(heard == [signal.SIGTERM])
        """,
    )
    assert said.strip() == "True"


SCENARIO = """
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import gan
from gan.commands import main, train
from gan.data.store import Store, verify
from gan.run.monitor import Monitor
from gan.trainer import Trainer

words = json.loads(sys.argv[1])
other = [sys.executable, "-c", json.loads(sys.argv[2])]
play, plays, held = Trainer.play, [], []

def stopped_at_the_second(run):
    plays.append(run.step)
    if len(plays) == 2:
        held.append(subprocess.run(other, capture_output=True, encoding="utf-8").stdout.strip())
        signal.raise_signal(signal.SIGTERM)
    return play(run)

Trainer.play = stopped_at_the_second
Monitor._report = lambda *given: ""  # it takes seconds, and is made where every command works
sys.argv = ["train.py"]
assert train.main(words) == 1
assert len(plays) == 2, plays
record = json.loads(Path("run/stopped.json").read_text(encoding="utf-8"))
assert (record["reason"], record["step"]) == ("signal", 2), record
assert held[0].startswith(f"held by process {os.getpid()} on "), held
assert not Path("run/.lock").exists()
assert train.main(words) == 0
assert plays == [0, 1, 2], plays
assert Path("run/finished.json").exists() and not Path("run/stopped.json").exists()
assert sorted(p.name for p in Path("run/checkpoints").glob("step-*")) == [
    "step-00000002", "step-00000003"
]
run = gan.load("run")
assert run.step == 3
linked = shutil.copytree(run.path, "linked/step-00000003")
Path(linked, "state.json").unlink()
Path(linked, "state.json").symlink_to(run.path.resolve() / "state.json")
try:
    gan.load(linked)
except ValueError as error:
    assert "state" in str(error) or "symbolic" in str(error), error
else:
    raise AssertionError("a link was followed")
(store,) = Path("data").glob("*.lmdb")
kept = Store(store)
assert not verify(store).damages
assert main(["data", "verify", str(store)]) == 0
assert main(["sample", "run", "--only", "grid", "--out", "pictures"]) == 0
assert main(["compare", "run"]) == 0
print("done")
"""
HELD = (
    BARE
    + """
from pathlib import Path
from gan.locks import HeldError, Lock
try:
    Lock(Path("run/.lock"))
except HeldError as error:
    print("held by", error)
"""
)


@pytest.mark.parametrize(
    ("lacks", "more"),
    [
        ("windows", {**LATIN, "LC_ALL": "C", "GAN_UNUSED": "torchvision"}),
        pytest.param("macos", {}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_trained_stopped_gone_on_with_and_used(there, lacks, more):
    """Where no file may be moved while it is open, and texts are ASCII unless said otherwise."""
    words = json.dumps([*TINY, "trainer.steps=3"])
    assert "done" in there(lacks, "-c", SCENARIO, words, json.dumps(HELD), **more)


def photos(folder):
    rng = np.random.default_rng(0)
    for number in range(24):
        place = folder / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(place / f"{number}.png")
    (folder / "photos" / "a" / "尚.png").write_bytes(b"no picture")


def test_a_store_is_built_again_and_a_pipe_without_chinese_is_no_error(there, tmp_path):
    photos(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    code = """
    from pathlib import Path
    from gan.commands import main
    build = ["data", "build", "photos", "p.lmdb", "--size", "16"]
    assert main(build) == 0
    assert main(build) == 2
    assert main([*build, "--overwrite"]) == 0
    assert main(["data", "build", "broken", "e.lmdb"]) == 2
    assert sorted(path.name for path in Path(".").iterdir()) == ["broken", "p.lmdb", "photos"]
    """
    untouched = {"GAN_UNUSED": HEAVY, "LC_ALL": "C.UTF-8"}
    said = there("windows", "-c", textwrap.dedent(code), **LATIN, **untouched)
    assert said.count(r"a/\u5c1a.png: ") == 2
    assert "image folder broken: 1 image cannot be used" in said


EVERYTHING = """
import json, sys
from pathlib import Path
import torch
from gan import runs
from gan.commands import main, train

def black(self, prototypes, style):  # what two steps teach is not like any character
    return torch.where(prototypes < 0.7, -1.0, 1.0)

runs.Run.dressed = black

def done(*words):
    assert main([*words]) == 0, words

sys.argv = ["train.py"]
tiny = json.loads(sys.stdin.read())
assert train.main([*tiny, "trainer.steps=2", "trainer.evaluate=true"]) == 0
done("evaluate", "run")
done("sample", "run")
done("export", "run")
done("compare", "run", "--out", "compared")
done("font", "run", "--reference", "glyph.png", "--out", "f.ttf", "--characters", "\u5c1a\u4e00")
done("font", "run", "--reference", "glyph.png", "--shows", "\u4e00", "--adapt", "1")
done("data", "build", "photos", "p.lmdb", "--size", "16")
done("data", "verify", "p.lmdb")
done("classifier", "p.lmdb", "--epochs", "1")
done("classifier", "p.lmdb", "--epochs", "1")
done("relabel", "p.lmdb", "--epochs", "2", "--start", "1", "--window", "2", "--device", "cpu")
small = "model=dcgan data=folder data.path=photos image.size=16 generator.width=4 "
small += "discriminator.width=4 generator.latent=8 trainer.batch_size=8 trainer.steps=2 "
small += "trainer.judges=false trainer.measured=32"
assert train.main([*small.split(), "run_dir=two", "processes=2"]) == 0
assert train.main(["-m", *small.split(), "seed=0,1"]) == 0
left = [path for path in Path(".").rglob("*") if path.name == ".lock" or ".tmp" in path.name]
assert not [p for p in left if "classifiers" not in p.parts and ".p.label" not in str(p)], left
print("done")
"""


@pytest.mark.slow
def test_every_command_works(there, tmp_path):
    photos(tmp_path)
    (tmp_path / "photos" / "a" / "尚.png").unlink()
    page = Image.new("L", (80, 80), 255)
    ImageDraw.Draw(page).rectangle((20, 30, 60, 40), fill=0)
    page.save(tmp_path / "glyph.png")
    words = json.dumps(TINY)
    said = there("windows", "-c", EVERYTHING, said=words, **LATIN, LC_ALL="C.UTF-8")
    assert said.endswith("done\n"), said
