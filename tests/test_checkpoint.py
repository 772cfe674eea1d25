"""Checkpoints under flipped bits, kills, full disks and hostile hands."""

import copy
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from gan import checkpoint
from gan.checkpoint import CheckpointError
from gan.run import optimizer_state

Listener = Callable[[str, tuple[Any, ...]], None]

SEED = 20  # of every random choice below
FILES = ("networks.safetensors", "optimizers.safetensors", "state.json", "config.yaml")
LISTENERS: list[Listener] = []


def hear(event: str, args: tuple[Any, ...]) -> None:
    for listener in LISTENERS:
        listener(event, args)


sys.addaudithook(hear)  # it stays for good, so one serves all tests


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call the listener at each audit event: files, code, processes, sockets."""
    LISTENERS.append(listener)
    try:
        yield
    finally:
        LISTENERS.remove(listener)


@pytest.fixture(autouse=True)
def quick(monkeypatch: Any) -> None:
    """Nothing cuts the power here: tests watch the calls of fsync and need not wait for them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(
    folder: Path, step: int, run_id: str = "run", value: float | None = None, **parts: Any
) -> Path:
    """A small checkpoint whose tensors and state all say `value`, by default the step."""
    value = float(step) if value is None else value
    contents: dict[str, Any] = {
        "networks": {"recipe/weight": torch.full((2, 3), value), "recipe/seen": torch.tensor(step)},
        "optimizers": {"generator/0/exp_avg": torch.full((2, 3), value)},
        "state": {"value": value, "step": step},
        "config": f"value: {value}\n",
    }
    return checkpoint.save(folder, step, run_id=run_id, **contents | parts)


def value_of(path: Path) -> float:
    """The value of a checkpoint that loads and is of one piece."""
    stored = checkpoint.load(path)
    value = stored.state["value"]
    assert torch.equal(stored.networks["recipe/weight"], torch.full((2, 3), value))
    assert torch.equal(stored.optimizers["generator/0/exp_avg"], torch.full((2, 3), value))
    assert stored.config == f"value: {value}\n"
    return value


def refused(path: Path, match: str | None = None) -> None:
    before = sorted(os.listdir(path))
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "resume=auto" in str(caught.value)
    assert sorted(os.listdir(path)) == before, "a checkpoint that fails to load is kept"


def names(folder: Path, beginning: str = "") -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(beginning))


# -- what goes in comes out -----------------------------------------------------------------------


def awkward() -> dict[str, Tensor]:
    tied = torch.randn(4, 4)
    return {
        "contiguous": torch.randn(2, 3),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 5).T,
        "sliced": torch.randn(10)[2:7:2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "tied": tied,
        "tied_too": tied,
        "view": tied[1],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.randn(3)),
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(2).half(),
        "bfloat16": torch.randn(2).bfloat16(),
        "complex": torch.randn(2, dtype=torch.complex64),
        "long": torch.tensor([2**62, -1]),
        "bytes": torch.arange(4, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "negative zero": torch.tensor([-0.0, 1e-45]),
    }


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().contiguous().view(torch.uint8)


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = awkward()
    path = save(tmp_path, 7, networks=tensors, optimizers=dict(reversed(tensors.items())))
    stored = checkpoint.load(path)
    for part in (stored.networks, stored.optimizers):
        assert part.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert part[name].dtype == tensor.dtype, name
            assert part[name].shape == tensor.shape, name
            assert torch.equal(bits(part[name]), bits(tensor)), name


def test_tensors_in_the_checkpoint_do_not_follow_the_live_ones(tmp_path: Path) -> None:
    weight = torch.zeros(2)
    path = save(tmp_path, 1, networks={"weight": weight})
    weight.add_(1)
    assert torch.equal(checkpoint.load(path).networks["weight"], torch.zeros(2))


def test_state_config_and_manifest_come_back(tmp_path: Path) -> None:
    state = {
        "big": 2**80 + 1,
        "small": 0.1 + 0.2,
        "none": None,
        "flag": True,
        "deep": [{"a": []}, "ü\n"],
    }
    path = save(
        tmp_path, 12, state=state, config="name: ü\n", facts={"threads": 2, "flags": ["tf32"]}
    )
    stored = checkpoint.load(path)
    assert path == tmp_path / "step-00000012"
    assert (stored.path, stored.step, stored.state, stored.config) == (path, 12, state, "name: ü\n")
    manifest = stored.manifest
    assert manifest["format"] == 1
    assert manifest["run_id"] == "run"
    assert manifest["facts"] == {"threads": 2, "flags": ["tf32"]}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["config_sha256"] == hashlib.sha256("name: ü\n".encode()).hexdigest()
    assert names(path) == sorted([*FILES, "manifest.json"])
    for entry in manifest["files"]:
        data = (path / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_networks_alone_need_no_optimizers(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    (path / "optimizers.safetensors").unlink()
    stored = checkpoint.load(path, networks_only=True)
    assert stored.optimizers == {}
    assert torch.equal(stored.networks["recipe/weight"], torch.full((2, 3), 3.0))
    refused(path, "optimizers.safetensors")


@pytest.mark.row("C16", "stored examples of old formats load")
def test_first_released_format_still_loads(tmp_path: Path, tried: Any) -> None:
    path = write_example(tmp_path)
    stored = checkpoint.load(path)
    assert (stored.step, stored.state, stored.config) == (5, {"position": 640}, "seed: 0\n")
    assert torch.equal(stored.networks["recipe/weight"], torch.tensor([1.0, -2.0]))
    assert stored.optimizers == {}
    tried(1)


def write_example(folder: Path) -> Path:
    """Format 1 to the byte, written without the code under test."""
    header = b'{"recipe/weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    files = {
        "networks.safetensors": len(header).to_bytes(8, "little") + header + b"\0\0\x80?\0\0\0\xc0",
        "optimizers.safetensors": (2).to_bytes(8, "little") + b"{}",
        "state.json": b'{"position": 640}',
        "config.yaml": b"seed: 0\n",
    }
    listed = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    path = folder / "step-00000005"
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    seal(path, {"format": 1, "run_id": "first", "step": 5, "files": listed})
    return path


def seal(path: Path, manifest: Any) -> None:
    """Write a manifest with a valid closing hash, as anyone can."""
    body = json.dumps(manifest, indent=2).encode().removesuffix(b"\n}") + b',\n  "sha256": "'
    (path / "manifest.json").write_bytes(
        body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    )


# -- C5, C6: damaged files ------------------------------------------------------------------------


def flip(path: Path, chance: random.Random) -> Callable[[], object]:
    """Flip one bit anywhere in the folder; returns what undoes it."""
    sizes = {name: os.path.getsize(path / name) for name in sorted(os.listdir(path))}
    name = chance.choice(list(sizes))
    place = chance.randrange(sizes[name])
    data = (path / name).read_bytes()
    changed = bytearray(data)
    changed[place] ^= 1 << chance.randrange(8)
    (path / name).write_bytes(changed)
    return lambda: (path / name).write_bytes(data)


def loads(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return False
    return True


@pytest.mark.row("C5", "1,000 of 1,000 flips refused before parsing, both hashes named")
@pytest.mark.parametrize("flips", [1000])
def test_flipped_bit_is_refused_before_parsing(
    tmp_path: Path, flips: int, monkeypatch: Any, tried: Any
) -> None:
    path, chance = save(tmp_path, 2), random.Random(SEED)

    def forbidden(*_: Any) -> None:
        raise AssertionError("damaged bytes were parsed")

    for _ in range(flips):
        undo = flip(path, chance)
        with monkeypatch.context() as patch:
            patch.setattr(safetensors.torch, "load", forbidden)
            refused(path, "SHA-256 [0-9a-f]{64}, but .*says")
        undo()
    assert value_of(path) == 2
    tried(flips)


def test_flipped_bits_load_silently_without_the_hashes(tmp_path: Path, monkeypatch: Any) -> None:
    path, chance = save(tmp_path, 2), random.Random(SEED)
    monkeypatch.setattr(
        checkpoint, "verified", lambda path, entry: (path / entry["name"]).read_bytes()
    )
    silent = 0
    for _ in range(100):
        undo = flip(path, chance)
        silent += loads(path)
        undo()
    assert silent > 5


@pytest.mark.row("C5", "the fallback is printed")
def test_newest_falls_back_and_says_why(tmp_path: Path, capsys: Any, tried: Any) -> None:
    good, bad = save(tmp_path, 9900), save(tmp_path, 10000)
    flip(bad, random.Random(SEED))
    (tmp_path / "step-20000").mkdir()
    assert checkpoint.newest(tmp_path) == good
    first, second = capsys.readouterr().out.splitlines()
    assert re.search("skipped.*step-20000.*manifest.json", first)
    assert re.search("skipped.*step-00010000.*SHA-256", second)
    assert bad.exists()
    tried(2)


def unreadable(monkeypatch: Any, path: Path, number: int) -> None:
    """Let every read of a file below a folder fail with this error of the system."""
    plain = os.open

    def opened(name: Any, *given: Any, **options: Any) -> int:
        if path in Path(name).parents and str(name).endswith(("safetensors", "json")):
            raise OSError(number, os.strerror(number), str(name))
        return plain(name, *given, **options)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_none_is_resumable_where_the_disk_does_not_give_it(
    tmp_path: Path, monkeypatch: Any, number: int
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    with monkeypatch.context() as disk:
        unreadable(disk, new, number)
        refused(new, os.strerror(number))
        assert checkpoint.resumable(tmp_path, lambda skipped: None) == old
        flip(old, random.Random(SEED))
        assert checkpoint.newest(tmp_path, lambda skipped: None) is None
        reason = rf"step-00000002 may be whole: .*{os.strerror(number)}.*another run_dir"
        with pytest.raises(checkpoint.UnreadableError, match=reason):
            checkpoint.resumable(tmp_path, lambda skipped: None)
    assert checkpoint.resumable(tmp_path) == new
    (new / "state.json").unlink()
    assert checkpoint.resumable(tmp_path, lambda skipped: None) is None


def test_none_is_resumable_where_only_a_newer_version_reads_it(tmp_path: Path) -> None:
    seal(path := save(tmp_path, 1), {"format": 2, "anything": "else"})
    assert checkpoint.newest(tmp_path, lambda skipped: None) is None
    with pytest.raises(checkpoint.UnreadableError, match=r"step-00000001 .*format is 2.*update ga"):
        checkpoint.resumable(tmp_path, lambda skipped: None)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace("else", "more"))  # it does not verify
    assert checkpoint.resumable(tmp_path, lambda skipped: None) is None


def test_newest_compares_steps_as_numbers(tmp_path: Path) -> None:
    for step in (9, 99_999_999, 100_000_000, 10):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-100000000"
    assert max(names(tmp_path, "step")) == "step-99999999", "text would say otherwise"


def test_newest_of_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") is None
    (tmp_path / "notes.txt").touch()
    assert checkpoint.newest(tmp_path) is None


def test_index_is_only_a_hint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert json.loads((tmp_path / "index.json").read_text()) == {
        "newest": path.name,
        "run_id": "run",
    }
    for text in ("", '{"newest": "step-00000009"}', "[" * 100_000):
        (tmp_path / "index.json").write_text(text)
        assert checkpoint.newest(tmp_path) == path
    (tmp_path / "index.json").unlink()
    assert checkpoint.newest(tmp_path) == path


@pytest.mark.row("C6", "every cut refused and kept")
def test_cut_file_is_refused(tmp_path: Path, tried: Any) -> None:
    path, chance = save(tmp_path, 2), random.Random(SEED)
    for name in [*FILES, "manifest.json"]:
        data = (path / name).read_bytes()
        for length in {0, 1, len(data) - 1, *(chance.randrange(len(data)) for _ in range(20))}:
            (path / name).write_bytes(data[:length])
            refused(path, name)
        (path / name).write_bytes(data + b"\n")
        refused(path, name)
        (path / name).write_bytes(data)
    assert value_of(path) == 2
    tried(105)


@pytest.mark.row("C6", "every missing file refused and kept")
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_file_is_refused_by_name(tmp_path: Path, name: str, tried: Any) -> None:
    path = save(tmp_path, 2)
    (path / name).unlink()
    refused(path, name)
    tried(1)


def test_newer_format_is_refused_in_words(tmp_path: Path) -> None:
    path = write_example(tmp_path)
    seal(path, {"format": 2, "anything": "else"})
    refused(path, "format is 2, this version reads 1: update gan")


# -- C1, C2, C4: a save that is killed or fails ---------------------------------------------------


@pytest.mark.row("C1", "0 corrupt, 0 acknowledged lost")
@pytest.mark.parametrize("kills", [10, pytest.param(500, marks=pytest.mark.slow)])
def test_killed_save_loses_nothing_acknowledged(tmp_path: Path, kills: int, tried: Any) -> None:
    chance = random.Random(SEED)
    for number in range(kills):
        folder = tmp_path / str(number)
        rising = number % 2  # otherwise one step is saved again and again, as during a warm-up
        acknowledged = kill_while_saving(folder, rising, chance.uniform(0, 0.03))
        path = checkpoint.newest(folder, notice=pytest.fail)
        assert path is not None
        assert checkpoint.load(path).state["count"] >= acknowledged
        checkpoint.sweep(folder, "run")
        assert names(folder, ".") == []
        assert checkpoint.newest(folder) == path
    tried(kills)


def kill_while_saving(folder: Path, rising: int, seconds: float) -> int:
    """Kill a process that saves without end; the count of the last save that it acknowledged."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        tensors = {f"{i}": torch.zeros(1 << 14) for i in range(8)}
        for count in itertools.count(1):
            step = 1 + rising * count
            parts = {"networks": tensors, "state": {"count": count}}
            checkpoint.save(folder, step, run_id="run", optimizers={}, config="", **parts)
            os.write(writer, count.to_bytes(4, "little"))
            checkpoint.rotate(folder, "run")
    os.close(writer)
    try:
        last = os.read(reader, 4)
        select.select([], [], [], seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while more := os.read(reader, 4):
        last = more
    os.close(reader)
    return int.from_bytes(last, "little")


class Fault(BaseException):
    """Raised where nobody expects it."""


FILE_EVENTS = ("open", "os.", "shutil.")


@contextmanager
def fault_at(
    operation: int, folder: Path, error: BaseException, monkeypatch: Any
) -> Iterator[list[str]]:
    """Raise at the n-th file operation below the folder; yields what was done until then."""
    done: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(FILE_EVENTS) and str(folder) in str(args[0]):
            done.append(f"{event} {args[0]}")
            if len(done) == operation:
                raise error

    def fsync(descriptor: int) -> None:
        watch("os.fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),))
        synced(descriptor)

    synced = os.fsync
    with monkeypatch.context() as patch, listening(watch), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where only tidying failed
        patch.setattr(os, "fsync", fsync)
        yield done


def survives_every_fault(
    folder: Path, act: Callable[[Path], object], error: BaseException, monkeypatch: Any
) -> int:
    """Fail `act` at each of its file operations in turn; the old or the new step 2 always loads."""
    for operation in itertools.count(1):
        here = folder / str(operation)
        shutil.copytree(folder / "before", here, copy_function=os.link)
        with fault_at(operation, here, error, monkeypatch) as done:
            try:
                act(here)
                failed = False
            except (OSError, Fault):
                failed = True
        path = checkpoint.newest(here, notice=pytest.fail)
        assert path is not None, done
        assert value_of(path) in (2, 3), done
        if failed and not done[-1].startswith("shutil"):
            assert names(here, ".tmp-run-step") == [], done
        if len(done) < operation:
            return operation - 1
    raise AssertionError


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A folder of which `before` holds two checkpoints."""
    for step in (1, 2):
        save(tmp_path / "before", step)
    return tmp_path


ACTS: dict[str, Callable[[Path], object]] = {
    "next": lambda folder: save(folder, 3),
    "again": lambda folder: save(folder, 2, value=3),
    "rotate": lambda folder: [save(folder, 3), checkpoint.rotate(folder, "run")],
}


@pytest.mark.row("C2", "the previous checkpoint loads at every point")
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.EIO, "injected"), id="OSError", marks=pytest.mark.slow),
        pytest.param(Fault(), id="Fault"),
    ],
)
@pytest.mark.parametrize("act", ACTS)
def test_error_at_any_file_operation_loses_nothing(
    twice: Path, act: str, error: BaseException, monkeypatch: Any, tried: Any
) -> None:
    assert survives_every_fault(twice, ACTS[act], error, monkeypatch) > 20
    tried(1)


def test_replacing_in_place_would_lose_a_checkpoint(twice: Path, monkeypatch: Any) -> None:
    def in_place(temporary: Path, target: Path, run_id: str) -> None:
        shutil.rmtree(target)
        os.rename(temporary, target)

    monkeypatch.setattr(checkpoint, "_publish", in_place)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        survives_every_fault(twice, ACTS["again"], Fault(), monkeypatch)


@pytest.mark.row("C4", "the order of fsync and rename, exact")
def test_order_of_syncs_and_renames(tmp_path: Path, monkeypatch: Any, tried: Any) -> None:
    save(tmp_path, 1)
    events = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename":
            events.append(f"rename {Path(args[0]).name} {Path(args[1]).name}")

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"fsync {path.relative_to(tmp_path)}")
        synced(descriptor)

    synced = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    with listening(watch):
        save(tmp_path, 2)
    temporary = ".tmp-run-step-00000002"
    assert events == [
        *(f"fsync {temporary}/{name}" for name in [*FILES, "manifest.json"]),
        f"fsync {temporary}",
        f"rename {temporary} step-00000002",
        "fsync .",
        "fsync .tmp-run-index.json",
        "rename .tmp-run-index.json index.json",
    ]
    tried(1)


def test_written_bytes_are_read_back(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path, 1)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path)[:-1] + b"?")
    with pytest.raises(OSError, match="read back differ"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["index.json", "step-00000001"]


# -- the same step again --------------------------------------------------------------------------


def test_valid_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 0, value=1)
    assert value_of(save(tmp_path, 0, value=2)) == 2
    assert names(tmp_path) == ["index.json", "step-00000000"]


def test_damaged_checkpoint_of_the_same_step_is_kept_aside(tmp_path: Path, capsys: Any) -> None:
    for value in (1, 2):
        (save(tmp_path, 5, value=value) / "state.json").write_text("{}")
    assert value_of(save(tmp_path, 5, value=3)) == 3
    assert names(tmp_path, "step") == ["step-00000005", "step-00000005.1", "step-00000005.2"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000005"


def test_checkpoint_moved_aside_is_found_when_its_successor_is_absent(tmp_path: Path) -> None:
    save(tmp_path, 4)
    aside = save(tmp_path, 5).rename(tmp_path / "step-00000005.1")
    assert checkpoint.newest(tmp_path) == aside
    assert value_of(aside) == 5


def test_step_of_another_run_is_not_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 5, run_id="first")
    with pytest.raises(CheckpointError, match="of run first, not second: choose another run_dir"):
        save(tmp_path, 5, run_id="second", value=9)
    assert value_of(path) == 5
    assert names(tmp_path) == ["index.json", "step-00000005"]


# -- C3: what may not be stored -------------------------------------------------------------------

UNSTORABLE: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"networks": {"bad": torch.tensor([0.0, torch.nan])}}, "networks.*bad.*NaN"),
    "inf": ({"optimizers": {"bad": torch.tensor(-torch.inf)}}, "optimizers.*bad.*NaN"),
    "nan in half": ({"networks": {"bad": torch.tensor([torch.nan]).bfloat16()}}, "bad.*NaN"),
    "number": ({"networks": {"bad": 3.0}}, "bad is 3.0, not a dense tensor"),
    "array": ({"networks": {"bad": np.zeros(2)}}, "bad.*not a dense tensor"),
    "sparse": ({"networks": {"bad": torch.zeros(2, 2).to_sparse()}}, "bad.*not a dense tensor"),
    "meta": ({"networks": {"bad": torch.zeros(2, device="meta")}}, "bad.*not a dense tensor"),
    "complex128": ({"networks": {"bad": torch.zeros(2, dtype=torch.complex128)}}, "complex128"),
    "reserved": ({"networks": {"__metadata__": torch.zeros(2)}}, "__metadata__ is a name that"),
    "surrogate": ({"networks": {"\ud800": torch.zeros(2)}}, "networks cannot be stored"),
    "nan in state": ({"state": {"best": {"fid": float("nan")}}}, r"state\.best\.fid is nan"),
    "integer key": ({"state": {"milestones": {5: 1}}}, r"state\.milestones is {5: 1}.*string keys"),
    "tensor in state": ({"state": {"a": [torch.zeros(1)]}}, r"state\.a\[0\] is tensor"),
    "object in state": ({"state": {"a": object()}}, r"state\.a is <object"),
    "set in facts": ({"facts": {"flags": {1}}}, r"facts\.flags is {1}"),
    "large state": ({"state": {"a": "x" * (17 << 20)}}, "state takes .* bytes of JSON"),
    "run id": ({"run_id": "../other"}, "run_id.*'../other'"),
}


@pytest.mark.row("C3", "0 partial folders")
@pytest.mark.parametrize("case", UNSTORABLE)
def test_unstorable_value_is_refused_by_name(tmp_path: Path, case: str, tried: Any) -> None:
    parts, message = UNSTORABLE[case]
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 2, **parts)
    assert names(tmp_path) == ["index.json", "step-00000001"]
    tried(1)


# -- K1 to K4: the disk ---------------------------------------------------------------------------


@pytest.mark.row("K1", "20 of 20 right messages, 0 lost")
def test_full_disk_is_reported_and_loses_nothing(tmp_path: Path, tried: Any) -> None:
    save(tmp_path, 1)
    networks = {"weight": torch.zeros(5000)}
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, 20_000, 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            with pytest.raises(
                OSError, match=r"step-00000002 was not saved.*MiB needed.*MiB free.*run_dir"
            ):
                save(tmp_path, 2, networks=networks)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
        assert names(tmp_path) == ["index.json", "step-00000001"]
    assert value_of(tmp_path / "step-00000001") == 1
    assert checkpoint.load(save(tmp_path, 2, networks=networks)).networks["weight"].shape == (5000,)
    tried(20)


@pytest.mark.row("K2", "seen before anything is written")
def test_too_little_free_space_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: Any, tried: Any
) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60 << 20))
    done: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(FILE_EVENTS[:2]) and str(tmp_path) in str(args[0]):
            done.append(event)

    with listening(watch), pytest.raises(OSError, match="64 MiB needed, 60 MiB free") as caught:
        save(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC
    assert done == []
    assert names(tmp_path) == before
    tried(1)


@pytest.mark.row("K3", "a text of its own for each errno")
@pytest.mark.parametrize("place", ["open", "write", "fsync"])
@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_trouble_with_the_disk_is_named(
    tmp_path: Path, code: int, place: str, monkeypatch: Any, tried: Any
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    class Unwritable(io.FileIO):
        write = fails

    if place == "fsync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        opened = fails if place == "open" else Unwritable
        monkeypatch.setattr(checkpoint, "open", opened, raising=False)
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        save(tmp_path, 2)
    assert caught.value.errno == code
    assert str(tmp_path / "step-00000002") in str(caught.value)
    assert names(tmp_path) == []
    tried(1)


@pytest.mark.row("K4", "made again")
def test_folder_is_made_again_after_someone_removed_it(tmp_path: Path, tried: Any) -> None:
    save(tmp_path / "run" / "checkpoints", 1)
    shutil.rmtree(tmp_path / "run")
    assert value_of(save(tmp_path / "run" / "checkpoints", 2)) == 2
    tried(1)


def test_failing_index_is_a_warning(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.warns(UserWarning, match="is saved, but not index.json"):
        path = save(tmp_path, 1)
    assert value_of(path) == 1


# -- C12, C13: rotation and leftovers -------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: Any) -> dict[tuple[str, int], Path]:
    """Checkpoints of two runs to make histories of."""
    steps = [1, 2, 9, 10, 500, 9900, 10_000, 99_999_999, 100_000_000]
    folder = tmp_path_factory.mktemp("pool")
    return {
        (run, step): save(folder / run, step, run) for run in ("run", "run-2") for step in steps
    }


def history(
    folder: Path, pool: Mapping[tuple[str, int], Path], chance: random.Random
) -> dict[str, str]:
    """Random checkpoints of both runs and a few strangers; which run each folder is of."""
    folder.mkdir()
    owners = {}
    for step in sorted({step for _, step in pool}):
        run = chance.choice(["run", "run", "run-2", ""])
        if run:
            source = pool[run, step]
            shutil.copytree(source, folder / source.name, copy_function=os.link)
            owners[source.name] = run
    if chance.random() < 0.3:
        (folder / "step-00000777").mkdir()
        owners["step-00000777"] = "no manifest"
    return owners


def rotates_right(folder: Path, pool: Mapping[tuple[str, int], Path], histories: int) -> None:
    chance = random.Random(SEED)
    for number in range(histories):
        here = folder / str(number)
        owners = history(here, pool, chance)
        own = sorted(int(name[5:]) for name, owner in owners.items() if owner == "run")
        keep = chance.choice([2, 2, 3])
        pinned = set(chance.sample(own, min(len(own), chance.randrange(3))))
        expected = {f"step-{step:08d}" for step in {*own[-keep:], *pinned}}
        expected |= {name for name, owner in owners.items() if owner != "run"}
        checkpoint.rotate(here, "run", keep, pinned)
        assert set(names(here)) == expected, (SEED, number, owners, keep, pinned)


@pytest.mark.row("C12", "0 wrong deletions")
@pytest.mark.parametrize("histories", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_rotation_removes_only_old_steps_of_its_own_run(
    tmp_path: Path, pool: Any, histories: int, tried: Any
) -> None:
    rotates_right(tmp_path, pool, histories)
    tried(histories)


@pytest.mark.parametrize("mistake", ["text", "owner"])
def test_rotation_is_seen_to_go_wrong(
    tmp_path: Path, pool: Any, mistake: str, monkeypatch: Any
) -> None:
    scan = checkpoint._scan
    wrong = {
        "text": (
            "_scan",
            lambda folder: sorted(scan(folder), key=lambda item: item[1].name, reverse=True),
        ),
        "owner": ("_owner", lambda path: "run"),
    }
    if mistake == "text":
        monkeypatch.setattr(
            checkpoint, "sorted", lambda steps, reverse: sorted(steps, key=str), raising=False
        )
    monkeypatch.setattr(checkpoint, *wrong[mistake])
    with pytest.raises(AssertionError):
        rotates_right(tmp_path, pool, 20)


def test_folder_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: Any) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)

    def fails(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fails)
        with pytest.warns(UserWarning, match="could not be removed") as caught:
            checkpoint.rotate(tmp_path, "run")
    assert len(caught) == 2, "each is tried"
    assert names(tmp_path, "step") == ["step-00000003", "step-00000004"]
    checkpoint.sweep(tmp_path, "run")
    assert names(tmp_path, ".") == []


def test_rotation_leaves_links_alone(tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere", 1)
    for step in (2, 3):
        save(tmp_path / "run", step)
    (tmp_path / "run" / elsewhere.name).symlink_to(elsewhere)
    checkpoint.rotate(tmp_path / "run", "run")
    assert value_of(tmp_path / "run" / elsewhere.name) == 1


def test_save_clears_what_its_killed_predecessor_left(tmp_path: Path) -> None:
    (tmp_path / ".tmp-run-step-00000001").mkdir()
    (tmp_path / ".tmp-run-step-00000001" / "state.json").write_text("half")
    (tmp_path / ".tmp-run-index.json").write_text("half")
    assert value_of(save(tmp_path, 1)) == 1
    assert names(tmp_path) == ["index.json", "step-00000001"]


def test_rotation_keeps_at_least_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 2, not 1"):
        checkpoint.rotate(tmp_path, "run", keep=1)


@pytest.mark.row("C13", "0 own left, 0 foreign touched")
def test_sweep_removes_own_leftovers_and_nothing_else(tmp_path: Path, tried: Any) -> None:
    own = [".tmp-a-step-00000003", ".trash-a-step-00000001", ".trash-a-step-00000001.1.2"]
    foreign = [
        ".tmp-a-b-step-00000003",
        ".trash-b-step-00000001",
        ".tmp-a",
        ".tmp-axstep-1",
        "notes",
    ]
    for name in own + foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".tmp-a-index.json").touch()
    outside = tmp_path / "notes" / "file"
    (tmp_path / ".tmp-a-step-00000009").symlink_to(tmp_path / "notes")
    save(tmp_path, 1, run_id="a")
    checkpoint.sweep(tmp_path, "a")
    assert names(tmp_path) == sorted([*foreign, "index.json", "step-00000001"])
    assert outside.exists(), "a link is removed, not followed"
    checkpoint.sweep(tmp_path / "absent", "a")
    tried(9)


# -- X1: hostile checkpoints ----------------------------------------------------------------------


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def forge(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in place of a file, with hashes that fit."""
    (path / name).write_bytes(data)
    change(
        path,
        lambda manifest: [fit(entry, data) for entry in manifest["files"] if entry["name"] == name],
    )


def fit(entry: dict[str, Any], data: bytes) -> None:
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def change(path: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    alter(manifest)
    seal(path, manifest)


def tensor_file(header: Any, data: bytes = b"\0" * 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def torch_file(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(path), buffer)
    return buffer.getvalue()


def object_array(path: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(path)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


TWICE = b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(entry()).encode()}
NETWORKS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda path: pickle.dumps(Payload(path / "run")),
    "text pickle": lambda path: pickle.dumps(Payload(path / "run"), protocol=0),
    "torch.save": lambda path: torch_file(path / "run"),
    "object array": lambda path: object_array(path / "run"),
    "nothing": lambda path: b"",
    "offsets beyond the end": lambda path: tensor_file(
        {"a": entry(offsets=(0, 400), shape=(100,))}
    ),
    "offsets backwards": lambda path: tensor_file({"a": entry(offsets=(4, 0))}),
    "overlapping tensors": lambda path: tensor_file({"a": entry(), "b": entry()}),
    "bytes of no tensor": lambda path: tensor_file({"a": entry()}, b"\0" * 64),
    "huge header": lambda path: (1 << 60).to_bytes(8, "little") + b"{}",
    "large header": lambda path: tensor_file(b'{"a":"' + b"x" * (17 << 20) + b'"}'),
    "name twice": lambda path: tensor_file(TWICE),
    "name twice, escaped": lambda path: tensor_file(TWICE.replace(b',"a"', b',"\\u0061"')),
    "deep header": lambda path: tensor_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "unknown dtype": lambda path: tensor_file({"a": entry("F99")}),
    "negative shape": lambda path: tensor_file({"a": entry(shape=(-1,))}),
    "overflowing shape": lambda path: tensor_file({"a": entry(shape=(2**62, 8))}),
    "endless empty shape": lambda path: tensor_file(
        {"a": entry(shape=(2**63, 0), offsets=(0, 0))}, b""
    ),
}
STATES = {
    "deep state": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": 1e999}',
    "key twice": b'{"step": 1, "step": 2}',
    "no object": b"[1]",
    "endless integer": b'{"a": ' + b"9" * 10_000 + b"}",
    "no JSON": b"!!python/object/apply:os.mkdir [run]",
    "no UTF-8": b'{"a": "\xff"}',
    "large": b'{"a": "' + b"x" * (17 << 20) + b'"}',
}


def relink(path: Path, name: str, target: str) -> None:
    data = Path(target).read_bytes()
    forge(path, name, data)
    (path / name).unlink()
    (path / name).symlink_to(target)


def replaced(path: Path, name: str, make: Callable[[Path], object]) -> None:
    (path / name).unlink()
    make(path / name)


def named_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


def relist(key: str, value: Any) -> Callable[[Path], None]:
    return lambda path: change(path, lambda manifest: manifest["files"][0].update({key: value}))


def again(path: Path, name: str) -> None:
    change(path, lambda manifest: manifest["files"].append({**manifest["files"][0], "name": name}))


LISTED = "manifest.json lists"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to a file outside": (
        lambda path: relink(path, "config.yaml", "/etc/hostname"),
        "symbolic links.*config.yaml",
    ),
    "link to the networks": (
        lambda path: relink(path, "optimizers.safetensors", str(path / "networks.safetensors")),
        "symbolic links.*optimizers",
    ),
    "link to nothing": (
        lambda path: replaced(path, "state.json", lambda p: p.symlink_to("absent")),
        "symbolic links.*state.json",
    ),
    "link as manifest": (
        lambda path: [
            (path / "manifest.json").rename(path.parent / "elsewhere.json"),
            (path / "manifest.json").symlink_to("../elsewhere.json"),
        ],
        "symbolic links.*manifest.json",
    ),
    "folder": (lambda path: replaced(path, "state.json", Path.mkdir), "directory.*state.json"),
    "pipe": (lambda path: replaced(path, "state.json", os.mkfifo), "state.json is no regular"),
    "pipe as manifest": (
        lambda path: replaced(path, "manifest.json", os.mkfifo),
        "manifest.json is no regular",
    ),
    "socket": (lambda path: replaced(path, "state.json", named_socket), "No such dev.*state.json"),
    "name above": (relist("name", "../networks.safetensors"), LISTED),
    "absolute name": (relist("name", "/etc/passwd"), LISTED),
    "name with a separator": (relist("name", "./networks.safetensors"), LISTED),
    "number as name": (relist("name", 3), LISTED),
    "bytes as text": (relist("bytes", "176"), r"bytes, expected was \['176'\]"),
    "endless bytes": (relist("bytes", 2**70), r"bytes, expected was \[1180591620717411303424\]"),
    "no bytes": (relist("bytes", None), r"bytes, expected was \[None\]"),
    "no hash": (relist("sha256", None), "manifest.json says None"),
    "listed twice": (lambda path: again(path, "networks.safetensors"), LISTED),
    "another file listed": (lambda path: again(path, "code.py"), LISTED),
    "file not listed": (lambda path: (path / "code.py").touch(), r"it holds \['code.py'\]"),
    "too few listed": (lambda path: change(path, lambda m: m["files"].pop()), LISTED),
    "entries no objects": (lambda path: change(path, lambda m: m.update(files=[[], 1])), LISTED),
    "files no list": (lambda path: change(path, lambda m: m.update(files="abc")), "lacks"),
    "step as text": (lambda path: change(path, lambda m: m.update(step="2")), "lacks"),
    "another step": (lambda path: change(path, lambda m: m.update(step=9)), "is of step 9"),
    "no format": (lambda path: change(path, lambda m: m.pop("format")), "lacks a known format"),
    "old format": (lambda path: change(path, lambda m: m.update(format=0)), "lacks a known format"),
    "no run": (lambda path: change(path, lambda m: m.pop("run_id")), "lacks"),
    "large manifest": (
        lambda path: change(path, lambda m: m.update(a="x" * (17 << 20))),
        "manifest.json has 178.* bytes",
    ),
    "manifest without its hash": (
        lambda path: (path / "manifest.json").write_text('{"format": 1}'),
        "manifest.json has SHA-256",
    ),
    "manifest of a word": (
        lambda path: (path / "manifest.json").write_text("x"),
        "manifest.json has SHA-256",
    ),
    "text no UTF-8": (
        lambda path: forge(path, "config.yaml", b"\xff"),
        "config.yaml cannot be parsed",
    ),
}
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        name: (
            lambda path, make=make: forge(path, FILES[0], make(path)),
            f"{FILES[0]} cannot be parsed",
        )
        for name, make in NETWORKS.items()
    },
    **{
        name: (
            lambda path, data=data: forge(path, "state.json", data),
            "state.json cannot be parsed",
        )
        for name, data in STATES.items()
    },
    **FOLDERS,
}
CODE = ("exec", "compile", "import", "pickle.", "subprocess.", "socket.", "ctypes.", "shutil.")
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
)


@contextmanager
def harmless() -> Iterator[list[str]]:
    """Collects what a reader has no business to do: run code, write, talk, start processes."""
    seen: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event.startswith(CODE + CHANGES) or writes:
            seen.append(f"{event} {args}")

    with listening(watch):
        yield seen


@pytest.mark.row("X1", "refused; no exec, socket, process, write")
@pytest.mark.parametrize("form", HOSTILE)
def test_hostile_checkpoint_is_refused_and_runs_nothing(
    tmp_path: Path, form: str, tried: Any
) -> None:
    path = save(tmp_path, 2)
    assert value_of(path) == 2  # and every import that reading needs is done
    make, reason = HOSTILE[form]
    make(path)
    began = time.process_time()
    with harmless() as seen:
        assert not loads(path)
    assert time.process_time() - began < 2
    assert seen == []
    refused(path, reason)
    tried(1)


def test_hostile_forms_are_many() -> None:
    assert len(HOSTILE) >= 30


def test_harmful_reader_is_seen(tmp_path: Path) -> None:
    with harmless() as seen:
        pickle.loads(pickle.dumps(Payload(tmp_path / "run")))
    assert any(event.startswith("os.mkdir") for event in seen)


@pytest.mark.parametrize("form", ["name twice", "name twice, escaped"])
def test_safetensors_alone_takes_a_name_twice(form: str, tmp_path: Path) -> None:
    assert list(safetensors.torch.load(NETWORKS[form](tmp_path))) == ["a"]


# -- C14: restoring tensors -----------------------------------------------------------------------


def test_restore_copies_in_place_and_keeps_ties_and_formats() -> None:
    layer = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    live = {"a": layer.weight, "b": layer.weight, "bias": layer.bias}
    stored = {name: torch.randn(tensor.shape) for name, tensor in live.items()}
    stored["b"] = stored["a"].clone()
    places = [tensor.data_ptr() for tensor in live.values()]
    checkpoint.restore(live, stored, "the network")
    assert [tensor.data_ptr() for tensor in live.values()] == places
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    assert all(torch.equal(live[name], stored[name]) for name in live)


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda stored: stored.pop("layer3"), "layer3 is not stored"),
    "unknown": (lambda stored: stored.update(extra=torch.zeros(1)), "extra is unknown here"),
    "renamed": (
        lambda stored: stored.update(other=stored.pop("layer3")),
        "2 places: layer3 is not stored; other is unknown here",
    ),
    "shape": (
        lambda stored: stored.update(layer3=torch.zeros(3, 2)),
        r"layer3 is \[3, 2\] float32 stored and \[2, 3\] float32 here",
    ),
    "dtype": (
        lambda stored: stored.update(layer3=torch.zeros(2, 3).double()),
        r"layer3 is \[2, 3\] float64 stored and \[2, 3\] float32 here",
    ),
}


@pytest.mark.row("C14", "one message, live weights unchanged")
@pytest.mark.parametrize("case", MISFITS)
def test_misfit_is_told_and_nothing_is_copied(case: str, tried: Any) -> None:
    alter, message = MISFITS[case]
    live = {f"layer{number}": torch.zeros(2, 3) for number in range(12)}
    stored = {name: torch.ones(2, 3) for name in live}
    alter(stored)
    with pytest.raises(CheckpointError, match=f"the network does not fit.*{message}.*config.yaml"):
        checkpoint.restore(live, stored, "the network")
    assert not any(tensor.any() for tensor in live.values())
    tried(1)


def test_another_architecture_is_told_in_ten_differences() -> None:
    live = {f"layer{number}": torch.zeros(2) for number in range(40)}
    with pytest.raises(CheckpointError, match="40 places") as caught:
        checkpoint.restore(live, {name: torch.zeros(3) for name in live}, "the network")
    assert str(caught.value).count("layer") == 10


# -- optimizers -----------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "adam": lambda groups: Adam(groups, lr=1e-2, betas=(0.5, 0.9)),
    "adam fused": lambda groups: Adam(groups, lr=1e-2, fused=True),
    "adam foreach": lambda groups: Adam(groups, lr=1e-2, foreach=True),
    "adam amsgrad": lambda groups: Adam(groups, lr=1e-2, amsgrad=True),
    "adam tensor rate": lambda groups: Adam(groups, lr=torch.tensor(1e-2), foreach=False),
    "adamw": lambda groups: AdamW(groups, lr=1e-2, weight_decay=0.1),
    "adamw fused": lambda groups: AdamW(groups, lr=1e-2, fused=True),
    "sgd": lambda groups: SGD(groups, lr=1e-2),
    "sgd momentum": lambda groups: SGD(groups, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd fused": lambda groups: SGD(groups, lr=1e-2, momentum=0.9, fused=True),
    "rmsprop": lambda groups: RMSprop(groups, lr=1e-2),
    "rmsprop momentum": lambda groups: RMSprop(groups, lr=1e-2, centered=True, momentum=0.9),
    "nadam": lambda groups: NAdam(groups, lr=1e-2),
    "adagrad": lambda groups: Adagrad(groups, lr=1e-2),
}


class Player:
    """A small module with a channels-last, an unused and a frozen parameter, and its optimizer."""

    def __init__(self, name: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.ModuleDict(
            {"conv": nn.Conv2d(2, 3, 3), "head": nn.Linear(3, 1), "idle": nn.Linear(2, 2)}
        )
        self.module["conv"].to(memory_format=torch.channels_last)
        self.module["head"].bias.requires_grad_(False)
        conv, rest = (
            self.module["conv"],
            [*self.module["head"].parameters(), *self.module["idle"].parameters()],
        )
        self.optimizer = OPTIMIZERS[name](
            [{"params": conv.parameters()}, {"params": rest, "lr": 3e-3}]
        )

    def step(self, times: int) -> None:
        """Steps whose images depend on nothing but their number."""
        for number in range(times):
            images = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(number))
            features = self.module["conv"](images).tanh().mean((2, 3))
            self.optimizer.zero_grad()
            self.module["head"](features).square().sum().backward()
            self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """All that training has changed."""
        state, _ = optimizer_state.flatten(self.optimizer)
        return {**self.module.state_dict(), **state}


def resumed(name: str, stored: checkpoint.Checkpoint, **options: Any) -> Player:
    player = Player(name, seed=1)
    player.optimizer.param_groups[0].update(options)
    checkpoint.restore(player.module.state_dict(), stored.networks, "the module")
    optimizer_state.unflatten(player.optimizer, stored.optimizers, stored.state["groups"])
    return player


def stored_player(folder: Path, player: Player) -> checkpoint.Checkpoint:
    optimizers, groups = optimizer_state.flatten(player.optimizer)
    networks = player.module.state_dict()
    return checkpoint.load(
        save(folder, 1, networks=networks, optimizers=optimizers, state={"groups": groups})
    )


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("steps", [0, 3], ids=["never stepped", "stepped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str, steps: int) -> None:
    player = Player(name)
    player.step(steps)
    for group in player.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.7  # as a schedule does
    other = resumed(name, stored_player(tmp_path, player))
    assert same(player.tensors(), other.tensors())
    player.step(5)
    other.step(5)
    assert same(player.tensors(), other.tensors())
    ours, theirs = (
        player.optimizer.state_dict()["param_groups"],
        other.optimizer.state_dict()["param_groups"],
    )
    assert repr(ours) == repr(theirs), "options keep their types"


@pytest.mark.parametrize("left_out", ["tensors", "one moment", "groups"])
def test_leaving_out_a_part_of_an_optimizer_is_seen(tmp_path: Path, left_out: str) -> None:
    player = Player("adam")
    player.step(3)
    player.optimizer.param_groups[0]["lr"] = 5e-3
    stored = stored_player(tmp_path, player)
    if left_out == "tensors":
        stored.optimizers.clear()
    elif left_out == "groups":
        stored.state["groups"][0]["lr"] = 1e-2
    else:
        stored.optimizers["0/exp_avg_sq"].mul_(1 + 1e-6)
    other = resumed("adam", stored)
    player.step(5)
    other.step(5)
    assert not same(player.tensors(), other.tensors())


def test_parameters_and_random_state_are_left_alone(tmp_path: Path) -> None:
    player = Player("adam")
    player.step(2)
    stored, other = stored_player(tmp_path, player), Player("adam", seed=1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(other.optimizer, 0.5)
    stored.state["groups"] = [
        group | {"initial_lr": group["lr"]} for group in stored.state["groups"]
    ]
    parameters = [p for group in other.optimizer.param_groups for p in group["params"]]
    before, drawn = copy.deepcopy(other.module.state_dict()), torch.get_rng_state()
    calls: list[int] = []
    other.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer_state.unflatten(other.optimizer, stored.optimizers, stored.state["groups"])
    assert same(before, other.module.state_dict())
    assert torch.equal(drawn, torch.get_rng_state())
    assert calls == []
    kept = [p for group in other.optimizer.param_groups for p in group["params"]]
    assert all(ours is theirs for ours, theirs in zip(parameters, kept, strict=True))
    other.step(1)
    scheduler.step()
    assert calls == [1]
    assert other.optimizer.param_groups[0]["lr"] == 1e-2 * 0.5


def test_moments_lie_in_memory_as_their_parameters(tmp_path: Path) -> None:
    player = Player("adam fused")
    player.step(1)
    other = resumed("adam fused", stored_player(tmp_path, player))
    weight = other.module["conv"].weight
    assert weight.stride() != weight.contiguous().stride()
    assert other.optimizer.state[weight]["exp_avg"].stride() == weight.stride()


@pytest.mark.parametrize(("saved", "built"), [("adam fused", "adam"), ("adam", "adam fused")])
def test_how_a_step_is_computed_is_not_restored(tmp_path: Path, saved: str, built: str) -> None:
    player = Player(saved)
    player.step(2)
    other = resumed(built, stored_player(tmp_path, player))
    assert (
        other.optimizer.param_groups[0]["fused"] == Player(built).optimizer.param_groups[0]["fused"]
    )
    assert same(player.tensors(), other.tensors())
    other.step(1)


def test_option_of_a_newer_torch_keeps_its_built_value(tmp_path: Path) -> None:
    stored = stored_player(tmp_path, Player("adam"))
    del stored.state["groups"][0]["maximize"]
    assert resumed("adam", stored, maximize=True).optimizer.param_groups[0]["maximize"] is True


WRONG: dict[str, tuple[Callable[[dict[str, Any], list[dict[str, Any]]], object], str]] = {
    "name missing": (lambda tensors, _: tensors.pop("0/exp_avg"), "0/exp_avg is not stored"),
    "name unknown": (lambda tensors, _: tensors.update({"0/x": torch.zeros(1)}), "0/x is unknown"),
    "number unknown": (
        lambda tensors, _: tensors.update({"99/step": torch.zeros(())}),
        "99/step is unknown",
    ),
    "number odd": (
        lambda tensors, _: tensors.update({"00/step": torch.zeros(())}),
        "00/step is unknown",
    ),
    "shape": (
        lambda tensors, _: tensors.update({"0/exp_avg": torch.zeros(2)}),
        r"0/exp_avg is \[2\] float32 stored and \[3, 2, 3, 3\]",
    ),
    "dtype": (
        lambda tensors, _: tensors.update({"0/step": torch.tensor(1)}),
        r"0/step is \[\] int64",
    ),
    "group missing": (lambda _, groups: groups.pop(), r"by group \[2\], here \[2, 4\]"),
    "group smaller": (
        lambda _, groups: groups[1]["params"].pop(),
        r"by group \[2, 3\], here \[2, 4\]",
    ),
    "option unknown": (
        lambda _, groups: groups[0].update(alpha=1),
        r"options \['alpha'\] are unknown",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_state_of_another_optimizer_is_refused_whole(case: str) -> None:
    alter, message = WRONG[case]
    source, player = Player("adam"), Player("adam")
    source.step(2)
    player.step(1)
    tensors, groups = optimizer_state.flatten(source.optimizer)
    alter(tensors, groups)
    before = copy.deepcopy(player.optimizer.state_dict())
    with pytest.raises(CheckpointError, match=f"the state of Adam does not fit.*{message}"):
        optimizer_state.unflatten(player.optimizer, tensors, groups)
    assert repr(player.optimizer.state_dict()) == repr(before)


def test_fresh_optimizer_knows_what_state_it_would_have() -> None:
    source = Player("adam")
    source.step(1)
    tensors, groups = optimizer_state.flatten(source.optimizer)
    del tensors["0/exp_avg"]
    with pytest.raises(CheckpointError, match="0/exp_avg is not stored"):
        optimizer_state.unflatten(Player("adam").optimizer, tensors, groups)
