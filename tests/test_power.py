"""Protections switched off, one at a time: the row that each belongs to must notice.

The table maps a row to the patch that disables its protection and to a check of that row. The check
runs in a forked child, since without some protections it ends in a signal.
"""

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_archives
import test_checkpoint
import test_configuration
import test_hostile_files
import test_order
import test_ranks
import test_resume
import test_security
import test_sources
import test_store
import test_stream
import torch

from gan import checkpoint
from gan.commands import train
from gan.data import layout, pages
from gan.data.building import build
from gan.data.datasets import Images
from gan.data.store import Store

NEEDED = {"C6", "C14", "D6", "D8", "F1", "L6", "L7", "L8", "S1", "S2", "S4", "S6", "X3", "X4"}


class Scene(NamedTuple):
    """What a check may use: a store to damage, an empty folder, glyphs, and a deaf `tried`."""

    copy: Path
    folder: Path
    glyphs: Path
    tried: Callable[[int], None]


class Power(NamedTuple):
    """A patch that switches a protection off, and a check that needs it."""

    target: str
    replacement: Any
    check: Callable[[Scene], object]
    forks: bool = False  # by itself


def holds(power: Power, scene: Scene) -> bool:
    """Whether a check passes; in a child, since it may end in a signal."""
    if not power.forks:
        return test_store.in_child(lambda: power.check(scene)) == 0
    try:
        power.check(scene)
    except AssertionError:
        return False
    return True


def unchecked(self: layout.Header, key: bytes, value: memoryview) -> memoryview:
    if len(value) != 48 + self.length:
        raise pages.StoreError("length")
    return memoryview(value)[48:]


def forgetful(*arguments: Any) -> int:
    return count_entries(*arguments[:4], set())


def careless(parameters: Any, values: Any, path: str) -> dict[str, Any]:
    return {key: values.get(key, parameter.default) for key, parameter in parameters.items()}


def unhashed(path: Path, entry: dict[str, Any]) -> bytes:
    file = path / entry["name"]
    return file.read_bytes() if file.exists() else b""


def hasty(live: Any, stored: Any, what: str) -> None:
    with torch.no_grad():
        for name in live.keys() & stored.keys():
            live[name].copy_(stored[name])
    checkpoint_restore(live, stored, what)


def drawn(self: Any, epoch: int) -> np.ndarray:
    return np.random.permutation(len(self.dataset))  # noqa: NPY002 - this is what must be noticed


def draws(seed: int, epoch: int, indices: np.ndarray, what: str) -> np.ndarray:
    return np.random.randint(0, 2**60, len(indices)).astype(np.uint64)  # noqa: NPY002 - likewise


count_entries = pages._count_entries
checkpoint_restore = checkpoint.restore


def mutants(scene: Scene) -> None:
    assert test_store.undetected(scene.copy, 60) == 0


def labyrinth(scene: Scene) -> None:
    test_hostile_files.labyrinth(scene.folder / "a.lmdb", scene.copy, levels=3, ways=9)
    with pytest.raises(pages.StoreError, match="it leads to page"):
        Store(scene.folder / "a.lmdb")


def callback(scene: Scene) -> None:
    os.chdir(scene.folder)
    train.main(["model=dcgan", "seed=-1", test_security.OVERRIDES[0]])
    assert not Path("owned").exists()


def target(scene: Scene) -> None:
    config = dict(test_configuration.presets()[0])
    config["trainer"] = config["trainer"] | test_security.TARGET
    with pytest.raises(ValueError, match="only registered names"):
        test_configuration.check(config)


def kills(scene: Scene) -> None:
    whole = build(test_store.LARGE, scene.folder / "whole" / "a.lmdb").content_hash
    test_store.kills(scene.folder / "new" / "a.lmdb", [1500], whole)


def images(scene: Scene) -> Images:
    return Images(Store(scene.glyphs), label="style")


def leaves_archive(scene: Scene) -> None:
    test_archives.test_names_that_leave_the_folder_are_refused("zip", "../out.png", scene.folder)


def spelt(scene: Scene) -> None:
    assert test_configuration.said_of_keys(20, seed=0) >= 0.95


def misfit(case: str) -> Callable[[Scene], None]:
    return lambda scene: test_checkpoint.test_misfit_is_told_and_nothing_is_copied(
        case, scene.tried
    )


def value(path: tuple[str, ...], wrong: Any) -> Callable[[Scene], None]:
    def check(scene: Scene) -> None:
        assert test_configuration.refused(0, path, wrong) is not None

    return check


POWER = {
    "C6": Power(
        "gan.checkpoint.verified",
        unhashed,
        lambda s: test_checkpoint.test_cut_file_is_refused(s.folder, s.tried),
    ),
    "C6 missing": Power(
        "gan.checkpoint.verified",
        unhashed,
        lambda s: test_checkpoint.test_missing_file_is_refused_by_name(
            s.folder, "config.yaml", s.tried
        ),
    ),
    "C14": Power("gan.checkpoint._form", lambda tensor: "", misfit("dtype")),
    "C14 whole": Power("gan.checkpoint.restore", hasty, misfit("renamed")),
    "C14 optimizer": Power(
        "gan.run.optimizer_state.fitting",
        lambda optimizer, *_: optimizer.state_dict(),
        lambda s: (
            test_resume.test_a_misfit_of_an_optimizer_leaves_networks_and_the_other_one_as_they_were(
                s.folder, s.tried
            )
        ),
    ),
    "D6": Power(
        "gan.run.state.fingerprints",
        lambda run: {},
        lambda s: test_ranks.test_weights_that_drift_apart_are_found_at_a_save(s.folder, s.tried),
    ),
    "D8": Power(
        "gan.distributed.require_same",
        lambda *_: None,
        lambda s: test_ranks.test_processes_that_are_set_up_differently_are_refused(
            s.folder, "data", "numbers-1", s.tried
        ),
    ),
    "D8 weights": Power(
        "gan.distributed.replicate",
        lambda tensors: None,
        lambda s: test_ranks.test_weights_are_those_of_the_first_process(s.folder, s.tried),
    ),
    "S1": Power(
        "gan.data.reading.checked_bytes",
        lambda descriptor: os.fstat(descriptor).st_size,
        lambda s: test_store.test_every_cut_is_found_before_lmdb_sees_the_file(s.copy, s.tried),
    ),
    "S1 in place": Power(
        "gan.data.reading.StoreFile.check_size",
        lambda self: None,
        lambda s: test_store.test_a_cut_in_place_is_found_before_the_next_batch(s.copy, s.tried),
    ),
    "S2": Power(
        "gan.data.layout.Header.payload",
        unchecked,
        mutants,
    ),
    "S3": Power("gan.data.pages._count_entries", forgetful, labyrinth),
    "S4": Power(
        "gan.data.reading.StoreFile._checked_meta",
        lambda self: layout.read_meta(self.transaction),
        lambda s: test_store.test_incomplete_stores_are_refused(s.copy, s.tried),
    ),
    "S6": Power("gan.data.builder.Builder._take_up", lambda *_: False, kills, forks=True),
    "S9": Power(
        "gan.data.store._require_unreplaced",
        lambda *_: None,
        lambda s: test_store.test_a_reader_keeps_the_old_content_of_a_replaced_store(s.copy),
    ),
    "S10": Power(
        "gan.data.reading.StoreFile.close",
        lambda self: setattr(self, "closed", True),
        lambda s: test_store.test_a_forked_child_reads_what_its_parent_has_open(s.copy),
        forks=True,
    ),
    "S14": Power(
        "gan.data.images.MOST_PIXELS",
        1 << 40,
        lambda s: test_sources.test_huge_images_are_rejected_by_their_header(
            9000, "9000 x 9000", s.folder
        ),
    ),
    "X3": Power("gan.commands.composing.require_values", lambda _: None, callback),
    "X3 checked": Power("gan.config.check.conform", careless, target),
    "X4": Power(
        "test_security.CALLS",
        {},
        lambda s: test_security.offences(ast.parse("eval(text)"), "")[0],
    ),
    "X5": Power("gan.data.archives._leaves", lambda name: False, leaves_archive),
    "X6": Power(
        "gan.data.pages._check_leaf_node",
        lambda *_: None,
        lambda s: (
            test_store.claim_4_gib(s.copy, b"block/00000000")
            or test_store.refused(s.copy, "its tree is damaged")
        ),
    ),
    "F1": Power("gan.config.check.nearest", lambda word, known: "", spelt),
    "F1 refused": Power("gan.config.check._only", lambda *_: None, spelt),
    "F2": Power("gan.config.signature._within", lambda _, v, __: v, value(("trainer", "keep"), 0)),
    "F2 finite": Power(
        "gan.config.signature._finite",
        lambda v, _: v,
        value(("optimizer", "discriminator", "lr"), float("inf")),
    ),
    "L6": Power(
        "gan.data.stream.Stream._order",
        lambda self, epoch: np.arange(len(self.dataset)),
        lambda s: test_stream.test_an_epoch_visits_every_sample_once_and_epochs_differ(images(s)),
    ),
    "L6 alone": Power(
        "gan.data.stream.Stream._order",
        drawn,
        lambda s: test_stream.test_order_is_a_function_of_seed_and_position_alone(images(s)),
    ),
    "L7": Power(
        "test_order.draw",
        draws,
        lambda s: test_order.test_flips_do_not_depend_on_batches.hypothesis.inner_test(7, 1),
    ),
    "L8": Power(
        "gan.data.stream.Stream._order",
        drawn,
        lambda s: test_stream.test_global_random_state_is_untouched(images(s)),
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "small.lmdb"
    build(test_store.SMALL, path)
    return path


@pytest.fixture
def scene(built: Path, tmp_path: Path, glyph_store: Path) -> Scene:
    folder = tmp_path / "folder"
    folder.mkdir()
    copy = Path(shutil.copy(built, tmp_path / "copy.lmdb"))
    return Scene(copy, folder, glyph_store, lambda count: None)


def test_rows_of_stores_streams_and_hostile_input_have_their_power() -> None:
    assert {name.split()[0] for name in POWER} >= NEEDED


QUICK = {"C14", "S1", "S2", "X3 checked", "X4", "F2", "L6", "L7", "L8"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in POWER]
)
def test_power(
    name: str, scene: Scene, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = POWER[name]
    if name.startswith(("F", "X3")):
        test_configuration.presets()
    assert holds(power, scene), "it must hold with the protection"
    monkeypatch.setattr(power.target, power.replacement)
    fresh = scene._replace(copy=Path(shutil.copy(built, tmp_path / "again.lmdb")), folder=tmp_path)
    assert not holds(power, fresh), "nobody noticed"
