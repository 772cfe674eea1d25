"""Protections switched off, one at a time: the row that each belongs to must notice.

The table maps a row to the patch that disables its protection and to a check of that row. The check
runs in a forked child, since without some protections it ends in a signal. Two more tables name
rows whose power is shown elsewhere, and those that nothing can be switched off for. A row that
stands in none of them is an error when tests are collected.
"""

import ast
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pytest
import test_archives
import test_checkpoint
import test_configuration
import test_ending
import test_foreign
import test_fuzzed
import test_group
import test_guard
import test_hostile_files
import test_log
import test_order
import test_player
import test_processes
import test_ranks
import test_resume
import test_security
import test_sources
import test_starts
import test_store
import test_stream
import test_watch
import torch
import yaml
from matrix import NUMBERED
from small import differing, everything, trainer

from gan import checkpoint, disk, distributed
from gan.checkpoint import CONFIG
from gan.commands import train
from gan.data import layout, pages
from gan.data.building import build
from gan.data.datasets import Images
from gan.data.store import Record, Store
from gan.registry import ConfigError
from gan.run import rundir, state
from gan.step.turns import discriminator_first


class Scene(NamedTuple):
    """What a check may use: a store to damage, an empty folder, glyphs, patches, a deaf `tried`."""

    copy: Path
    folder: Path
    glyphs: Path
    patch: pytest.MonkeyPatch
    tried: Callable[[int], None]


class Power(NamedTuple):
    """A patch that switches a protection off, and a check that needs it."""

    target: str
    replacement: Any
    check: Callable[[Scene], object]
    forks: bool = False  # by itself, and needs stderr there


def holds(power: Power, scene: Scene) -> bool:
    """Whether a check passes; in a child, since it may end in a signal."""
    if not power.forks:
        return test_store.in_child(lambda: power.check(scene)) == 0
    try:
        power.check(scene)
    except (Exception, pytest.fail.Exception):
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


def hurried(work: Callable[[], object]) -> None:
    if not distributed.rank():
        work()
    distributed.gathered(None)


def unmarked(parameters: Any, said: torch.Tensor) -> torch.Tensor:
    for parameter in parameters:
        given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = distributed.mean(given)
    return distributed.size() * distributed.mean(said)


def name_only(self: Any, number: int, frame: object) -> None:
    self.name = self.name or signal.Signals(number).name


def unflushed(self: Any, values: Any) -> None:
    self._lines.write(test_log.json.dumps(values) + "\n")


def locked(path: str, **options: Any) -> lmdb.Environment:
    return lmdb_open(path, **{**options, "lock": True})


class Free:
    """A lock that anybody gets."""

    def __init__(self, path: Path) -> None:
        self.release = lambda: None


lmdb_open = lmdb.open
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
    assert test_configuration.said_of_keys(60, seed=0) >= 0.95


def fault(name: str) -> Callable[[Scene], None]:
    return lambda s: test_group.test_the_process_at_fault_is_named_with_step_and_phase(
        s.folder, s.patch, name, s.tried
    )


def another_configuration(scene: Scene) -> None:
    values = test_configuration.check(test_configuration.presets()[0]).values
    disk.replace(scene.folder / CONFIG, yaml.safe_dump(values))
    disk.replace(scene.folder / rundir.FINISHED, "{}")
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        rundir.previous(scene.folder, "auto", {**values, "seed": 1}, print)


def held(scene: Scene) -> None:
    rundir.hold(scene.folder)
    assert test_store.in_child(lambda: rundir.hold(scene.folder)) == 1


def samples(scene: Scene) -> None:
    run = trainer(scene.folder)
    run.play()
    run.monitor.shown, run.monitor._show = {"ring": {}}, lambda *_: None
    run.monitor._clock = 0.0  # as if it had begun
    before = everything(run)
    run.monitor.sample(run.counts(), run.recipe, run.generators())
    assert differing(before, everything(run)) == set()


def updates(scene: Scene) -> None:
    run = trainer(scene.folder, steps=4, n_critic=3)
    run.train()
    assert run.discriminator_updates == 12


def asked(scene: Scene) -> None:
    run = trainer(scene.folder, **test_ending.GAME)
    test_ending.PHASES["generator's update"](run, signal.SIGTERM)
    assert not run.train()


def full_disk(scene: Scene) -> None:
    whole = build(test_store.LARGE, scene.folder / "whole.lmdb").content_hash
    test_store.test_a_full_disk_is_explained_and_resumed(scene.folder, whole)


def misfit(case: str) -> Callable[[Scene], None]:
    return lambda scene: test_checkpoint.test_misfit_is_told_and_nothing_is_copied(
        case, scene.tried
    )


def value(path: tuple[str, ...], wrong: Any) -> Callable[[Scene], None]:
    def check(scene: Scene) -> None:
        assert test_configuration.refused(0, path, wrong) is not None

    return check


POWER = {
    "C3": Power(
        "gan.run.sealed._copied",
        lambda name, tensor: tensor.clone(),
        lambda s: test_checkpoint.test_unstorable_value_is_refused_by_name(
            s.folder, "nan", s.tried
        ),
    ),
    "C4": Power(
        "gan.checkpoint.sync",
        lambda folder: None,
        lambda s: test_checkpoint.test_order_of_syncs_and_renames(s.folder, s.patch, s.tried),
    ),
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
    "C10": Power(
        "gan.data.stream.Stream._order",
        drawn,
        lambda s: test_resume.test_read_ahead_and_the_place_of_a_resume_change_no_sample(
            s.glyphs, s.tried
        ),
    ),
    "C11": Power(
        "gan.run.state._facts",
        lambda run: {},
        lambda s: test_resume.test_other_threads_versions_and_processes_are_told_in_one_warning(
            s.folder, s.patch, s.tried
        ),
    ),
    "C13": Power(
        "gan.checkpoint.sweep",
        lambda *_: None,
        lambda s: test_checkpoint.test_sweep_removes_own_leftovers_and_nothing_else(
            s.folder, s.tried
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
    "C15": Power("gan.run.rundir.differences", lambda *_: [], another_configuration),
    "C16": Power(
        "gan.run.sealed.FORMAT",
        0,
        lambda s: test_checkpoint.test_first_released_format_still_loads(s.folder, s.tried),
    ),
    "D2": Power("gan.run.peers.reports", lambda run, error: {}, fault("raises"), forks=True),
    "D3": Power("gan.run.peers.heard", lambda run: nullcontext(), fault("freezes"), forks=True),
    "D4": Power("gan.run.peers.heard", lambda run: nullcontext(), fault("dies"), forks=True),
    "D6": Power(
        "gan.run.state.fingerprints",
        lambda run: {},
        lambda s: test_ranks.test_weights_that_drift_apart_are_found_at_a_save(s.folder, s.tried),
    ),
    "D7": Power(
        "gan.distributed.by_first",
        hurried,
        lambda s: test_group.test_the_others_wait_for_the_first_without_a_time_out(
            s.folder, s.tried
        ),
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
    "G1": Power(
        "gan.step.gradients._moves",
        lambda player, name, term, module: term.requires_grad,
        lambda s: test_player.test_loss_without_gradient_is_refused_by_name(),
    ),
    "G2": Power(
        "gan.step.guard.Guard._inspect",
        lambda self: None,
        lambda s: test_watch.test_weights_that_nothing_trains_are_listed_once(s.folder, s.tried),
    ),
    "G3": Power(
        "gan.distributed.average_gradients",
        unmarked,
        lambda s: test_ranks.test_a_head_used_in_one_process_gets_its_share_of_the_gradient(
            s.tried
        ),
    ),
    "G6": Power(
        "gan.step.guard.Guard._inspect",
        lambda self: None,
        lambda s: test_watch.test_a_kept_graph_is_refused_by_name(s.folder, s.tried),
    ),
    "K1": Power(
        "gan.checkpoint._explained",
        lambda error, *_: error,
        lambda s: test_checkpoint.test_full_disk_is_reported_and_loses_nothing(s.folder, s.tried),
    ),
    "K2": Power(
        "gan.run.watch.Watch.disk",
        lambda *_: {},
        lambda s: test_watch.test_a_disk_running_full_is_seen(s.folder, s.patch, s.tried),
    ),
    "K3": Power(
        "gan.checkpoint._explained",
        lambda error, *_: error,
        lambda s: test_checkpoint.test_trouble_with_the_disk_is_named(
            s.folder, 5, "write", s.patch, s.tried
        ),
    ),
    "K4": Power(
        "gan.log.Log._return",
        lambda self: None,
        lambda s: test_ending.test_a_run_folder_that_is_removed_is_made_again(s.folder, s.tried),
    ),
    "N2": Power(
        "gan.step.guard.IN_A_ROW",
        100,
        lambda s: test_guard.test_values_that_stay_bad_stop_the_run_with_a_diagnosis(
            s.folder, s.tried
        ),
    ),
    "N5": Power(
        "gan.player.frozen",
        lambda parameters: nullcontext(),
        lambda s: test_player.test_opponent_gets_no_gradient_and_its_flags_back(),
    ),
    "N6": Power("gan.run.monitor.evaluated", lambda generator: torch.no_grad(), samples),
    "N7": Power(
        "gan.trainer.ORDERS",
        {"discriminator": lambda table, critic: discriminator_first(table, 1)},
        updates,
    ),
    "N13": Power(
        "gan.run.watch.Watch.game",
        lambda *_: {},
        lambda s: test_watch.test_a_discriminator_that_has_won_is_seen(s.folder, 0, s.tried),
    ),
    "N14": Power(
        "gan.run.watch.Watch.samples",
        lambda *_: {},
        lambda s: test_watch.test_a_collapsed_generator_is_seen(
            s.folder, "in little", test_watch.Constant, s.patch, s.tried
        ),
    ),
    "N15": Power(
        "gan.player.isfinite",
        lambda number: True,
        lambda s: test_guard.test_an_absurd_learning_rate_stops_the_run(s.folder, "sgd", s.tried),
    ),
    "P1": Power("gan.trainer.Trainer._asked", lambda self: False, asked),
    "P2": Power(
        "gan.distributed.anywhere",
        lambda flag, device: flag,
        lambda s: test_ranks.test_a_signal_to_one_process_stops_all_at_the_same_step(
            s.folder, s.tried
        ),
    ),
    "P4": Power(
        "gan.run.signals.Stop._note",
        name_only,
        lambda s: test_ending.test_a_second_signal_ends_unless_a_scheduler_asks_in_two_ways(
            "SIGTERM", "SIGINT", s.tried
        ),
    ),
    "P5": Power(
        "gan.run.saves.Saves._time",
        lambda *_: None,
        lambda s: test_ending.test_a_slow_checkpoint_is_told_once(s.folder, s.patch, s.tried),
    ),
    "P6": Power(
        "gan.run.signals.Stop.__exit__",
        lambda *_: None,
        lambda s: test_ending.test_handlers_come_back_after_a_run(s.folder, s.tried),
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
    "S5": Power(
        "gan.data.reading.checked_bytes",
        lambda descriptor: os.fstat(descriptor).st_size,
        lambda s: test_store.test_what_is_no_store_is_named(s.folder, s.patch, s.tried),
    ),
    "S6": Power("gan.data.builder.Builder._take_up", lambda *_: False, kills, forks=True),
    "S8": Power("gan.data.builder.writing", lambda *_: nullcontext(), full_disk, forks=True),
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
    "S11": Power(
        "lmdb.open",
        locked,
        lambda s: test_processes.test_four_processes_leave_nothing_behind(s.copy),
        forks=True,
    ),
    "S12": Power(
        "gan.data.builder.Builder._check",
        lambda self, record: None,
        lambda s: test_store.test_odd_records_are_refused(
            [Record("../a", test_store.IMAGE, {})], "relative path", s.folder
        ),
    ),
    "S13": Power(
        "PIL.ImageOps.exif_transpose",
        lambda image: image,
        lambda s: test_sources.test_photographs_are_turned_upright(s.folder),
    ),
    "S14": Power(
        "gan.data.images.MOST_PIXELS",
        1 << 40,
        lambda s: test_sources.test_huge_images_are_rejected_by_their_header(
            9000, "9000 x 9000", s.folder
        ),
    ),
    "T1": Power(
        "gan.log.Log._try",
        lambda self, file, write: write(),
        lambda s: test_log.test_a_log_that_cannot_be_written_is_told_once_and_changes_nothing(
            s.folder, "_scalars", "full", s.patch, threading.Event(), s.tried
        ),
    ),
    "T2": Power(
        "gan.log.Log._axis",
        lambda self, counts: counts["step"],
        lambda s: test_ending.test_a_warmup_is_logged_and_saved(s.folder, s.tried),
    ),
    "T4": Power(
        "gan.log.Log._line",
        unflushed,
        lambda s: test_log.test_a_killed_process_has_written_what_it_printed(s.folder, s.tried),
    ),
    "T5": Power(
        "gan.run.watch.Watch.data",
        lambda *_: {},
        lambda s: test_watch.test_waiting_for_data_is_seen(s.folder, s.tried),
    ),
    "X2": Power(
        "gan.run.state.resume",
        lambda run, path: state._put_back(run, checkpoint.load(path), path),
        lambda s: test_fuzzed.test_fuzzed_checkpoints_are_refused_or_are_numbers(
            s.folder, 60, s.tried
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
    "X8": Power(
        "gan.config.floors.below",
        lambda *_: [],
        lambda s: test_starts.test_old_packages_touch_no_foreign_bytes(
            s.folder, s.patch, "lmdb", s.tried
        ),
    ),
    "X11": Power(
        "gan.data.foreign._require_images",
        lambda *_: None,
        lambda s: test_foreign.test_other_layouts_are_named(
            {b"length": b"1", b"256-00000": test_foreign.encoded(0, "JPEG")}, "rosinality", s.folder
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
    "F3": Power(
        "gan.config.check._contradictions",
        lambda checked: None,
        value(("trainer", "n_critic"), {5: 1}),
    ),
    "F5": Power("gan.run.rundir.Lock", Free, held, forks=True),
    "L1": Power(
        "gan.data.stream.Stream._feed",
        lambda self, position: self._ready.put(OSError("gone")),
        lambda s: test_stream.test_an_error_in_the_thread_says_which_batch_and_store(
            images(s), s.tried
        ),
    ),
    "L2": Power(
        "gan.data.stream.Stream._stalled",
        lambda self, seconds: "no batch came",
        lambda s: test_stream.test_a_stalled_thread_ends_the_wait_with_its_stack(
            images(s), False, s.patch, s.tried
        ),
    ),
    "L4": Power(
        "gan.data.stream._join",
        lambda parts: parts[0],
        lambda s: test_order.test_a_last_partial_batch_is_filled_from_the_next_epoch(s.tried),
    ),
    "L5": Power(
        "gan.data.stream._join",
        lambda parts: parts[0],
        lambda s: test_order.test_five_critic_updates_cross_epochs_without_a_gap(9, s.tried),
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


ELSEWHERE = {  # the test that shows what happens without a protection
    "C1": "test_replacing_in_place_would_lose_a_checkpoint",
    "C2": "test_replacing_in_place_would_lose_a_checkpoint",
    "C5": "test_flipped_bits_load_silently_without_the_hashes",
    "C7": "test_every_part_of_the_state_is_needed",
    "C8": "test_every_part_of_the_state_is_needed",
    "C9": "test_two_processes_with_one_seed_do_not",
    "C12": "test_rotation_is_seen_to_go_wrong",
    "C18": "test_spectral_norm_of_the_average_is_one_once_refreshed",
    "D1": "test_noise_of_the_process_would_change_the_gradient",
    "D5": "test_deciding_alone_would_part_the_processes",
    **dict.fromkeys(
        [f"E{number}" for number in range(1, 11)],
        "test_without_the_explainer_backward_does_not_show_the_line",
    ),
    "G4": "test_a_network_that_writes_in_place_is_seen",
    "G5": "test_wrong_norms_miss_the_closed_form",
    "N1": "test_without_its_protection_a_bad_value_gets_in",
    "N3": "test_nothing_in_the_package_hides_bad_values",
    "N4": "test_nothing_in_the_package_hides_bad_values",
    "N8": "test_wrong_norms_miss_the_closed_form",
    "N9": "test_a_gradient_that_is_a_constant_has_no_second_derivative",
    "N10": "test_penalties_under_autocast_would_be_others",
    "P7": "test_handlers_do_nothing_but_set_a_flag",
    "S7": "test_the_map_grows",
    "X1": "test_harmful_reader_is_seen",
    "X7": "test_documents_keep_tensorboard_on_localhost",
    "X10": "test_a_socket_would_be_seen",
}
LIKE = {"D9": "F5", "D10": "F5", "P3": "P1"}  # the same protection, by way of the command
WITHOUT = {  # rows that nothing can be switched off for, and why
    **dict.fromkeys(["E20", "E21", "E22", "L10"], "a measured bound"),
    **dict.fromkeys(["F4", "N11"], "an identity of two values"),
    **dict.fromkeys(["L3", "T3"], "a line in the middle of a function"),
    **dict.fromkeys(["F6", "N16"], "many lines, each with a sentence of its own"),
    "L9": "a thread that the interpreter does not wait for",
    "N12": "the tests call the protection itself",
    "X9": "nothing that writes down the environment, hence nothing to leave out",
}
SHOWN = {name.split()[0] for name in POWER} | {*ELSEWHERE, *LIKE}
if SHOWN & {*WITHOUT} or SHOWN | {*WITHOUT} != {*NUMBERED}:
    raise LookupError(f"rows whose power is open: {sorted({*NUMBERED} ^ SHOWN ^ {*WITHOUT})}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "small.lmdb"
    build(test_store.SMALL, path)
    return path


@pytest.fixture
def scene(built: Path, tmp_path: Path, glyph_store: Path) -> Iterator[Scene]:
    folder = tmp_path / "folder"
    folder.mkdir()
    copy = Path(shutil.copy(built, tmp_path / "copy.lmdb"))
    with pytest.MonkeyPatch.context() as patch:
        yield Scene(copy, folder, glyph_store, patch, lambda count: None)


def test_power_that_is_shown_elsewhere_is_there() -> None:
    texts = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    assert [n for n in ELSEWHERE.values() if not any(f"def {n}(" in text for text in texts)] == []


QUICK = {"C14", "S1", "S2", "X3 checked", "X4", "F2", "L6", "L7", "L8"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in POWER]
)
def test_power(
    name: str, scene: Scene, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = POWER[name]
    if name.startswith(("C15", "F", "X3")):
        test_configuration.presets()
    assert holds(power, scene), "it must hold with the protection"
    monkeypatch.setattr(power.target, power.replacement)
    fresh = scene._replace(
        copy=Path(shutil.copy(built, tmp_path / "again.lmdb")), folder=tmp_path / "again"
    )
    fresh.folder.mkdir()
    assert not holds(power, fresh), "nobody noticed"
