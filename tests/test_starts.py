"""How runs start: many at once, with old packages, with a batch that is too small."""

import os
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small import trainer
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode

import gan.config.check
from gan.config import floors, rehearsal
from gan.data import foreign
from gan.data.building import build
from gan.registry import ConfigError
from gan.run import rundir

pytestmark = pytest.mark.usefixtures("quick_disk")


def started(run, folder, go, end, results):
    """A process that starts a run in a folder when the others start theirs."""
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it ends with the process
        os.read(go, 1)
        answer = b"?"
        try:
            run.monitor.run_dir, run.config = folder, str(os.getpid())
            rundir.begin(run, None, print)
            answer = b"+"
        except ConfigError as error:
            answer = b"-" if f"run_dir={folder} is in use by process" in str(error) else b"?"
        finally:
            os.write(results, answer)
            os.read(end, 1)
            os._exit(0)
    return child


@pytest.mark.row("D10", "processes that cannot meet: a clear message; of 20 starts one a folder")
@pytest.mark.parametrize("each", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_twenty_starts_at_once_have_one_run_in_each_folder(tmp_path, each, tried):
    """Under a parent that none of them finds made."""
    (go, gone), (end, ended), (done, results) = os.pipe(), os.pipe(), os.pipe()
    folders = [tmp_path / "runs" / str(number) for number in range(20 // each)]
    run = trainer(tmp_path)
    children = {started(run, f, go, end, results): f for f in folders for _ in range(each)}
    os.write(gone, b"." * 20)
    answers = b"".join(os.read(done, 1) for _ in children)
    kept = {folder: (folder / "config.yaml").read_text() for folder in folders}
    os.write(ended, b"." * 20)
    for child in children:
        os.waitpid(child, 0)
    for pipe in (go, gone, end, ended, done, results):
        os.close(pipe)
    assert sorted(answers) == sorted(b"+" * len(folders) + b"-" * (20 - len(folders)))
    assert [children[int(winner)] for winner in kept.values()] == folders
    tried(20)


# -- X8: packages with known holes


def old(monkeypatch, *packages):
    found = floors.installed
    monkeypatch.setattr(floors, "installed", lambda p: "0.1rc1" if p in packages else found(p))


@pytest.mark.row(
    "X8", "old packages with known holes: told at the start, refused where they matter"
)
@pytest.mark.parametrize("package", floors.FLOORS)
def test_old_packages_are_told_at_the_start(composed, monkeypatch, package, tried):
    assert gan.config.check.check(composed("model=dcgan")).notes == []
    old(monkeypatch, package)
    (note,) = gan.config.check.check(composed("model=dcgan")).notes
    assert f"{package} 0.1rc1 is older than" in note
    assert f"pip install -U '{package}>={floors.FLOORS[package][0]}'" in note
    tried(1)


@pytest.mark.row("X8")
@pytest.mark.parametrize("package", ["pillow", "lmdb"])
def test_old_packages_touch_no_foreign_bytes(tmp_path, monkeypatch, package, tried):
    old(monkeypatch, package)
    for touch in (lambda: build(None, tmp_path / "a.lmdb"), lambda: foreign.Encoded(tmp_path)):
        with pytest.raises(ConfigError, match=f"{package} 0.1rc1 is older .* pip install"):
            touch()
    assert not [*tmp_path.iterdir()]
    tried(2)


def test_floors_are_those_that_are_installed():
    project = tomllib.loads((Path(gan.__file__).parents[1] / "pyproject.toml").read_text())
    required = {line.partition(",")[0] for line in project["project"]["dependencies"]}
    assert {f"{package}>={floor}" for package, (floor, _) in floors.FLOORS.items()} <= required
    assert floors.below() == []


# -- N16: batch norm of one value


class OneValue(nn.Sequential):
    """Noise to images, by way of vectors that batch norm has seen."""

    latent = 2

    def __init__(self):
        super().__init__(nn.Linear(2, 256), nn.BatchNorm1d(256), nn.Unflatten(1, (1, 16, 16)))


@pytest.mark.row("N16", "batch norm of one value: refused at the start")
def test_batch_norm_of_one_value_is_refused(tiny, monkeypatch, tried):
    gan.config.check.check(tiny("dcgan", "trainer.batch_size=1"))  # many pixels of one image
    networks = rehearsal._networks
    one = {"generator": OneValue().to("meta")}
    monkeypatch.setattr(rehearsal, "_networks", lambda *given: networks(*given) | one)
    with pytest.raises(ConfigError, match=r"see one value of 1 image: raise trainer\.batch_size"):
        gan.config.check.check(tiny("dcgan", "trainer.batch_size=1"))
    with pytest.raises(ConfigError, match=r"see one value of 1 image: .* trainer\.micro_batch"):
        gan.config.check.check(tiny("dcgan", "trainer.micro_batch=1"))
    gan.config.check.check(tiny("dcgan", "trainer.batch_size=2"))
    tried(4)


class Watched(TorchDispatchMode):
    """Keeps the names of operations that are carried out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_power_iterations_cost_nothing_before_the_start_and_are_real_elsewhere():
    torch.manual_seed(0)
    with rehearsal._PowerIterations(), Watched() as watched:
        imagined = spectral_norm(nn.Conv2d(3, 4, 3, device="meta"))
        assert watched.names.count("aten::linalg_vector_norm") == 2  # of the two first vectors
        assert watched.names.count("aten::mv") == 1  # of the length, which may have a gradient
        real = spectral_norm(nn.Conv2d(3, 4, 3))
    shapes = [{n: b.shape for n, b in net.named_buffers()} for net in (imagined, real)]
    assert shapes[0] == shapes[1]
    assert imagined.weight.shape == real.weight.shape
    norm = torch.linalg.matrix_norm(real.weight.detach().flatten(1), 2)
    assert norm.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("spared", [True, False])
def test_a_rehearsal_is_spared_power_iterations(tiny, monkeypatch, spared):
    if not spared:
        monkeypatch.setattr(rehearsal, "_PowerIterations", nullcontext)
    with Watched() as watched:
        gan.config.check.check(tiny("dcgan", "discriminator.norm=spectral"))
    lengths = 3 * 3  # of three layers: as they are built, and as each player has them judged
    assert (watched.names.count("aten::mv") == lengths) == spared


def test_products_that_a_network_is_made_of_are_imagined_as_they_are():
    matrix = torch.randn(4, 27, device="meta", requires_grad=True)
    vector, short = (torch.randn(length, device="meta") for length in (27, 26))
    with rehearsal._PowerIterations():
        assert torch.mv(matrix, vector).requires_grad
        with torch.no_grad():
            assert torch.mv(matrix, vector).shape == (4,)
            with pytest.raises(RuntimeError):
                torch.mv(matrix, short)
