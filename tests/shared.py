"""A tiny set of glyphs, and configurations composed as on the command line."""

import copy
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hydra
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tensorboard.summary.writer import event_file_writer
from tiny_glyphs import SIZE, TinyGlyphs
from tqdm import tqdm

from gan import checkpoint
from gan.build import build as build_trainer
from gan.commands.composing import fitted
from gan.commands.train import conf_dir, switched_on
from gan.data.store import build
from gan.metrics import evaluation, image_evaluation, judges
from gan.run import rundir
from gan.run.monitor import Monitor

tqdm.set_lock(threading.RLock())  # its own is shared with forks, and one that is killed may hold it

TRAIN = Path(__file__).parents[1] / "train.py"
ALONE = ("run_dir", "seed", "resume", "init", "plugins", "freeze", "rates")  # values, not files
SMALL = [  # of a run that is started as a process
    "model=dcgan",
    "data=fonts",
    "image.size=16",
    "generator.width=4",
    "discriminator.width=4",
    "generator.latent=8",
    "generator.norm=group",
    "discriminator.norm=layer",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "trainer.precision=fp32",  # ranks are compared with one process
]


@pytest.fixture(scope="session")
def glyph_store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("glyphs") / "tiny.lmdb"
    build(TinyGlyphs(), path)
    return path


@pytest.fixture
def script(tmp_path, glyph_store):
    """Start `train.py` on the tiny glyphs as a process of its own, in an empty directory.

    It hears SIGINT, which a process that a shell has started by `&` would ignore, and its children.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TRAIN.parent), str(tmp_path), *sys.path])
    children = []

    def start(*arguments, under=(), **variables):
        child = subprocess.Popen(
            [sys.executable, *under, str(TRAIN), *arguments, f"data.path={glyph_store}"],
            cwd=tmp_path,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()


def ended(child):
    """A process's status and all that it said."""
    said, _ = child.communicate(timeout=900)
    return child.returncode, said


def waited_for(found, seconds=300):
    """What is found in time."""
    for _ in range(10 * seconds):
        if result := found():
            return result
        time.sleep(0.1)
    raise TimeoutError


def last(folder):
    """A run's newest checkpoint, which must be whole."""
    return checkpoint.load(checkpoint.newest(folder / "checkpoints", notice=pytest.fail))


@pytest.fixture
def two_cores(monkeypatch):
    """Two workers are no more than there are cores, of which torch warns."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})


@functools.cache
def _chosen(choices):
    with hydra.initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return hydra.compose("config", [*choices])


@functools.cache
def _composed(overrides):
    """As `hydra.compose`, which is slow: values are set in a copy of what files have given."""
    parsed = OverridesParser.create().parse_overrides([*map(switched_on, overrides)])
    values = [
        o
        for o in parsed
        if o.package is None and ("." in o.key_or_group or o.key_or_group in ALONE)
    ]
    config = copy.deepcopy(_chosen(tuple(o.input_line for o in parsed if o not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    fitted(config, [o.input_line for o in parsed])
    return OmegaConf.to_container(config, resolve=True)


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """Compose overrides into plain values, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: copy.deepcopy(_composed(overrides))


@pytest.fixture
def tiny(composed, glyph_store):
    """A family of models at 16 pixels on the tiny glyphs: `tiny("wnet", "trainer.steps=3")`."""

    def compose(model, *overrides):
        small = ["generator.width=2", "discriminator.width=2"]
        sizes = {
            "wnet": [*small, "recipe.feature=0", "trainer.judges=false"],
            "pix2pix": small,
            "cyclegan": [*small, "generator.blocks=1"],
            "dcgan": ["generator.width=4", "discriminator.width=4", "generator.latent=8"],
        }
        common = [
            f"model={model}",
            "data=fonts",
            f"data.path={glyph_store}",
            f"image.size={SIZE}",
            "trainer.batch_size=8",
            "trainer.steps=4",
            "trainer.measured=32",
            "run_dir=run",
        ]
        return composed(*common, *sizes[model], *overrides)

    return compose


@pytest.fixture
def unreported(monkeypatch):
    """W-Net's runs end without the table of scores, for tests of how they are trained."""
    monkeypatch.setattr(Monitor, "_report", lambda *given: "")


@pytest.fixture
def quick_disk(monkeypatch):
    """Nothing cuts the power in a test, so that it need not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_a_modules_fixtures():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread(_one_thread_for_a_modules_fixtures):
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _event_files_in_order(monkeypatch):
    """TensorBoard counts a process's files, and reads those of one second by name: 99 after 100."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10_000))


@pytest.fixture(autouse=True)
def _short_lessons(monkeypatch):
    """Judges learn for one epoch, of a few images: what they measure is not tested in training."""
    monkeypatch.setattr(judges, "TRAINING", judges.TRAINING._replace(epochs=1))
    monkeypatch.setattr(evaluation, "LEAST", 10**9)  # images are measured in their own tests alone
    monkeypatch.setattr(image_evaluation, "LESSON", 64)


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory):
    """What `trained` has trained before: its trainer and its folder, by model and overrides."""
    return tmp_path_factory.mktemp("trained"), {}


@pytest.fixture
def trained(tiny, kept_runs):
    """A checkpoint in the folder `run` after two steps whose average is far from the raw weights.

    `trained("dcgan", *overrides)` trains once and copies the folder from then on. It returns the
    trainer, which is to be looked at alone.
    """
    folder, kept = kept_runs

    def train(model, *overrides):
        if (model, overrides) not in kept:
            apart = ["optimizer.generator.lr=0.02", "average=uniform"]
            trainer = build_trainer(tiny(model, *apart, *overrides), lambda _: None)
            for _ in range(2):
                trainer.play()
            trainer.save()
            trainer.stream.close()
            trainer.stream.dataset.store.close()
            rundir.release(Path("run"))
            place = shutil.move("run", folder / str(len(kept)))
            kept[model, overrides] = trainer, place
        trainer, place = kept[model, overrides]
        shutil.copytree(place, "run")
        return trainer

    return train
