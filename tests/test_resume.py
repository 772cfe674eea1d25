"""Going on: to the last bit, from any moment, in a new process, and never with other data."""

import errno
import inspect
import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small import Numbers, differing, everything, newest, resumed, trainer

from gan import checkpoint, disk, distributed, log
from gan.average import Uniform
from gan.build import build
from gan.checkpoint import CONFIG, CheckpointError
from gan.losses.penalties import GradientPenalty
from gan.registry import ConfigError, create
from gan.run import rundir, state

pytestmark = pytest.mark.usefixtures("quick_disk")
GAME = {"discriminator_warmup": 4, "n_critic": {0: 2, 6: 1}, "steps": 20, "log_every": 5}
FAR = {**GAME, "save_every": 100}


def whole(folder, **options):
    run = trainer(folder, **{**FAR, **options})
    assert run.train()
    return everything(run)


def in_a_child(work):
    """Do something in a process of its own."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def play(run, updates):
    """Go on until the discriminator has had so many updates, as `train` does, and save."""
    while run.discriminator_updates < updates:
        if run.discriminator_updates < run.settings.discriminator_warmup:
            run.discriminate(shared=False)
        else:
            run.play()
    assert run.save()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return whole(folder), (folder / "metrics.jsonl").read_text()


PLACES = {  # updates of the discriminator: 4 of warm-up, 2 a step until step 6, then 1
    "before anything": 0,
    "inside the warm-up": 2,
    "where the warm-up ends": 4,
    "where a penalty is due": 6,
    "between two logs": 8,
    "where n_critic changes": 16,
    "late": 23,
}


QUICK = {"inside the warm-up", "where a penalty is due", "where n_critic changes"}


@pytest.mark.row("C7", "saved in one process, resumed in another: difference 0")
@pytest.mark.parametrize(
    "place", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PLACES]
)
def test_a_new_process_goes_on_bit_for_bit(tmp_path, unbroken, place, tried):
    in_a_child(lambda: play(trainer(tmp_path, **FAR), PLACES[place]))
    run = resumed(tmp_path, **FAR)
    assert run.discriminator_updates == PLACES[place]
    assert run.train()
    assert differing(unbroken[0], everything(run)) == set()
    tried(1)


@pytest.mark.row("C7")
@pytest.mark.parametrize("step", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (6, 8))])
def test_a_mean_that_begins_at_the_sixth_step_goes_on(tmp_path, step, tried):
    """Saved just before, just after and later; without its count it would begin anew."""

    def started(folder):
        run = trainer(folder, **FAR)
        run.averages = {"uniform": Uniform(run.recipe.generator, start=6)}
        return run

    unbroken = started(tmp_path / "whole")
    assert unbroken.train()
    first = started(tmp_path / "run")
    play(first, 4 + 2 * min(step, 6) + max(0, step - 6))
    assert first.step == step
    for forgets in (False, True):
        run = started(tmp_path / str(forgets))
        run.resume(newest(tmp_path / "run"))
        run.averages["uniform"].updates *= not forgets
        assert run.train()
        assert bool(differing(everything(unbroken), everything(run))) == forgets
    tried(1)


def without(part):
    """A resumed trainer's parts as a new one has them: what leaving them out would mean."""

    def forget(run, fresh):
        with torch.no_grad():
            for name, tensor in state.gather(run.recipe, run.averages, run.players)[0].items():
                if part in name:
                    tensor.copy_(state.gather(fresh.recipe, fresh.averages, fresh.players)[0][name])

    return forget


def without_moments(side, moment):
    def forget(run, fresh):
        for parameter in getattr(run, side).optimizer.state.values():
            parameter[moment].zero_()

    return forget


def setting(**values):
    def forget(run, fresh):
        for path, value in values.items():
            *owners, name = path.split("__")
            owner = run
            for part in owners:
                owner = owner[part] if isinstance(owner, dict) else getattr(owner, part)
            setattr(owner, name, value)

    return forget


PARTS = {
    "generator's weights": without("recipe/generator.0.weight"),
    "running mean": without("running_mean"),
    "running variance": without("running_var"),
    "count of batches": without("recipe/generator.1.num_batches_tracked"),
    "discriminator's weights": without("recipe/discriminator"),
    "power iterations": without("0._v"),
    "pool": without("recipe/pool"),
    "running mean of the recipe": without("recipe/mean"),
    "average": without("average/ema/0.weight"),
    "images of the average": setting(averages__ema__images=0),
    "updates of the average": setting(averages__ema__updates=0),
    "step": setting(step=0),
    "discriminator's updates": setting(discriminator_updates=9),
    "position": setting(stream__position=0),
    "skipped updates": setting(guard__skipped={"generator": [], "discriminator": []}),
    **{
        f"{side}'s {moment}": without_moments(side, moment)
        for side in ("generator", "discriminator")
        for moment in ("exp_avg", "exp_avg_sq", "step")
    },
}
LIKE = {  # kept as another part is, which the default tier leaves out
    *("generator's exp_avg", "generator's exp_avg_sq", "generator's step"),
    *("running variance", "count of batches", "discriminator's weights"),
    *("running mean of the recipe", "updates of the average"),
}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A checkpoint in the middle of a run, with a skipped update before it, and that run's end."""

    def alter(batch, position):
        return {"real": batch["real"] * (torch.nan if position == 3 else 1)}

    folder = tmp_path_factory.mktemp("half")
    end = whole(folder / "whole", stream=Numbers(alter=alter))
    with warnings.catch_warnings(action="ignore"):
        play(trainer(folder / "run", Numbers(alter=alter), **FAR), 12)
    return folder / "run", end


@pytest.mark.row("C8", "leaving out any one part of the state makes C7 fail")
@pytest.mark.parametrize(
    "part",
    [None, *(pytest.param(p, marks=pytest.mark.slow if p in LIKE else ()) for p in PARTS)],
)
def test_every_part_of_the_state_is_needed(tmp_path, half, part, tried):
    folder = shutil.copytree(half[0], tmp_path / "run")
    run = resumed(folder, **FAR)
    if part:
        PARTS[part](run, trainer(tmp_path / "fresh", **FAR))
    assert run.train()
    found = differing(half[1], everything(run))
    assert bool(found) == (part is not None), found
    tried(1)


@pytest.mark.row("C8", "leaving out the seed of any generator makes C7 fail")
@pytest.mark.parametrize("generator", ["torch", "random", "numpy"])
def test_every_generator_is_seeded(tmp_path, half, generator, monkeypatch, tried):
    folder = shutil.copytree(half[0], tmp_path / "run")
    owners = {
        "torch": (torch.default_generator, "manual_seed"),
        "random": (random, "seed"),
        "numpy": (np.random, "seed"),
    }
    run = resumed(folder, **FAR)
    if generator == "torch":
        seed = distributed.seed

        def unseeded(*given):
            before = torch.get_rng_state()
            seed(*given)
            torch.set_rng_state(before)

        monkeypatch.setattr(distributed, "seed", unseeded)
    else:
        monkeypatch.setattr(*owners[generator], lambda value: None)
    run.train()
    assert differing(half[1], everything(run))
    tried(1)


# -- killed


@pytest.mark.row("C1", "killed at random moments: 0 corrupt, at most one interval lost, logs whole")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, kills, tried):
    """The trainer itself, killed again and again until it has finished."""
    options = {"steps": 60, "save_every": 5, "log_every": 1, "keep": 2}
    chance = random.Random(20)
    for _ in range(kills):
        child = os.fork()
        if not child:
            found = newest(tmp_path / "run")
            run = (
                resumed(tmp_path / "run", **options)
                if found
                else trainer(tmp_path / "run", **options)
            )
            try:
                run.train()
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest(tmp_path / "run")  # fails if any is corrupt
        lines = last_step(tmp_path / "run")
        assert lines - (checkpoint.load(found).step if found else 0) <= options["save_every"]
    found = newest(tmp_path / "run")
    run = resumed(tmp_path / "run", **options) if found else trainer(tmp_path / "run", **options)
    run.train()
    expected = trainer(tmp_path / "whole", **options)
    expected.train()
    assert differing(everything(expected), everything(run)) == set()
    assert scalars(tmp_path / "run") == scalars(tmp_path / "whole")
    tried(kills)


def last_step(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def scalars(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def test_lines_beyond_the_checkpoint_are_dropped_and_a_half_one_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "discriminator_updates": n}) + "\n" for n in range(10)]
    for end in (b'{"step": 9, "discrim', b"\0\0", b"\xff\xfe\n"):  # as a power cut may leave it
        path.write_bytes("".join(lines).encode() + end)
        log.go_back(path, 7)
        assert path.read_text() == "".join(lines[:8])
        log.go_back(path, 7)
        assert path.read_text() == "".join(lines[:8])


def test_numbers_that_a_start_anew_would_drop_are_kept_beside(tmp_path):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "ahead-of-0-metrics.jsonl"
    lines = [json.dumps({"step": n, "discriminator_updates": n}) + "\n" for n in range(4)]
    for text in (lines[0] + '{"step": 1, "discrim', "".join(lines)):  # killed before a checkpoint
        path.write_text(text)
        assert log.go_back(path, 0) is None
        assert path.read_text() == lines[0]
    (tmp_path / "checkpoints/ahead-of-0-step-00000002").mkdir(parents=True)  # of no use any more
    texts = ["".join(lines[:3]), "".join(lines) + '{"step": 4, "di']
    for text, kept in zip(texts, (aside, aside.with_name(f"{aside.name}.1")), strict=True):
        path.write_text(text)
        assert log.go_back(path, 0) == kept
        assert path.read_text() == lines[0]
    assert [p.read_text() for p in (aside, aside.with_name(f"{aside.name}.1"))] == texts
    path.write_text("".join(lines))
    assert log.go_back(path, 1) is None  # what is dropped is written again
    assert sorted(p.name for p in tmp_path.glob("ahead*")) == [aside.name, f"{aside.name}.1"]


@pytest.mark.row("T4", "a run directory with 10,000 log lines resumes in under 5 s")
def test_a_long_log_is_gone_back_over_quickly(tmp_path, tried):
    path = tmp_path / "metrics.jsonl"
    line = {"step": 0, "images": 0, **{f"generator/term{n}": 0.123456789 for n in range(20)}}
    rows = [json.dumps({**line, "discriminator_updates": n}) + "\n" for n in range(10_000)]
    path.write_text("".join(rows))
    begun = time.process_time()
    log.go_back(path, 9_000)
    assert time.process_time() - begun < 5
    assert path.read_text() == "".join(rows[:9001])
    tried(10_000)


# -- from elsewhere


@pytest.mark.row("C11", "one warning names each difference, old and new")
def test_other_threads_versions_and_processes_are_told_in_one_warning(tmp_path, monkeypatch, tried):
    play(trainer(tmp_path), 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "__version__", "3.1")
    monkeypatch.setattr(distributed, "size", lambda: 4)
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="goes on elsewhere") as caught:
        run.resume(newest(tmp_path))
    (warning,) = [str(w.message) for w in caught]
    for part in (r"threads was 1, is 7", r"processes was 1, is 4", r"torch was 2.*, is 3\.1"):
        assert __import__("re").search(part, warning), warning
    assert run.stream.position == 2
    tried(3)


@pytest.mark.parametrize("place", ["classifier", "loss"])
def test_another_network_to_look_through_is_told(tmp_path, place):
    def looking(seed):
        run = trainer(tmp_path)
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.BatchNorm2d(2)).eval()
        if place == "classifier":
            run.recipe._classifier = (network.requires_grad_(False),)
        else:
            loss = create("reconstruction", "perceptual", network="discriminator")
            loss.network = network.requires_grad_(False)
            run.recipe.reconstruction = {"l1": create("reconstruction", "l1"), "perceptual": loss}
        return run

    play(looking(0), 6)
    looking(0).resume(newest(tmp_path))
    run, digest = looking(1), r"\['[0-9a-f]{16}'\]"
    with pytest.warns(UserWarning, match=rf"last bit: looks_through was {digest}, is {digest}$"):
        run.resume(newest(tmp_path))
    play(run, 8)
    looking(1).resume(newest(tmp_path))


@pytest.mark.row("C15", "data that changed under a run are refused, with both hashes")
def test_other_data_are_refused_with_both_hashes(tmp_path, tried):
    play(trainer(tmp_path), 2)
    run = trainer(tmp_path)
    before = everything(run)
    run.stream.content = "other numbers"
    with pytest.raises(
        CheckpointError, match=r"hash numbers, which is now other numbers: .*data\.path"
    ):
        run.resume(newest(tmp_path))
    assert differing(before, everything(run)) == set()
    tried(1)


def test_a_changed_store_is_refused_by_the_command(tiny, glyph_store, tmp_path):
    """The real thing: another store under the same path."""
    from tiny_glyphs import TinyGlyphs

    from gan.data.store import build as build_store

    class Others(TinyGlyphs):
        def fingerprint(self):
            return "others"

        def __iter__(self):
            for record in super().__iter__():
                yield record._replace(image=255 - record.image)

    path = tmp_path / "glyphs.lmdb"
    shutil.copy(glyph_store, path)
    overrides = [f"data.path={path}", "data=lmdb", "image.channels=1"]
    run = build(tiny("dcgan", *overrides))
    run.save()
    run.stream.close()
    run.stream.dataset.store.close()
    path.unlink()
    build_store(Others(), path)
    with pytest.raises(CheckpointError, match="was trained on data with the content hash"):
        build(tiny("dcgan", *overrides))


def test_a_run_from_before_a_free_setting_existed_goes_on(tiny):
    """Its configuration, in the directory and in the checkpoint, has no `trainer.graphs`."""
    run = build(tiny("dcgan"))
    older = yaml.safe_load(run.config)
    del older["trainer"]["graphs"]
    assert rundir.run_id(older) == run.run_id
    run.config = yaml.safe_dump(older)
    run.play()
    run.save()
    run.stream.close()
    (saved,) = Path("run/checkpoints").glob("step-*")
    assert "graphs" not in checkpoint.load(saved).config
    disk.replace(Path("run") / CONFIG, run.config)
    for resume in ("auto", saved):
        again = build(tiny("dcgan", f"resume={resume}"))
        assert (again.step, again.run_id) == (1, run.run_id)
        again.stream.close()
    del older["trainer"]["order"]  # the control: no free one
    again = build(tiny("dcgan"))
    again.config = yaml.safe_dump(older)
    again.play()
    assert again.save()
    again.stream.close()
    with pytest.raises(ConfigError, match="trainer.order was None and is now 'discriminator'"):
        build(tiny("dcgan"))


def test_settings_that_came_later_are_known():
    recipe = {f"recipe.{name}" for name in ("bend", "turn", "hollow")}
    generator = {f"generator.{name}" for name in ("self_ensemble", "paired")}
    penalties = {f"penalties.*.{key}" for key in ("end", "images")}
    assert {*rundir.LATER} == {*generator, "data.more", *recipe, *penalties}


@pytest.mark.parametrize("name", ["wgan_gp", "r1", "own"])
def test_a_penalty_from_before_weights_could_fall_goes_on(name):
    usual = inspect.signature(GradientPenalty).parameters
    later = {key: usual[key].default for key in ("end", "images")}
    older = {"penalties": {name: {"weight": 2.0, "every": 1}}}
    now = {"penalties": {name: {"weight": 2.0, "every": 1, **later}}}
    assert not rundir.differences(older, now)
    assert rundir.run_id(older) == rundir.run_id(now)
    now["penalties"][name]["end"] = 0.5
    assert rundir.differences(older, now) == [(f"penalties.{name}.end", None, 0.5)]


@pytest.mark.parametrize("key", [key for key in rundir.LATER if not key.startswith("penalties.")])
def test_a_run_from_before_a_setting_existed_goes_on_with_what_was_so_then(tiny, key):
    section, name = key.split(".")
    run = build(tiny("wnet"))
    older = yaml.safe_load(run.config)
    assert older[section].pop(name) == rundir.LATER[key]
    run.stream.close()
    assert rundir.run_id(older) == run.run_id
    assert not rundir.differences(older, yaml.safe_load(run.config))
    other = yaml.safe_load(run.config)
    other[section][name] = 0.5
    assert rundir.differences(older, other) == [(key, None, 0.5)]
    assert rundir.run_id(other) != run.run_id


@pytest.mark.parametrize(
    ("before", "now"),
    [("fonts/", "fonts"), (["fonts/"], "fonts"), (["fonts/", "hanzi-web"], ["fonts", "hanzi-web"])],
)
def test_a_folder_is_the_same_with_a_slash_at_its_end(before, now):
    for key in ("path", "more"):
        old, new = {"data": {key: before}}, {"data": {key: now}}
        assert not rundir.differences(old, new)
        assert rundir.run_id(old) == rundir.run_id(new)


def test_a_run_that_goes_on_keeps_its_id(tiny):
    """It may have begun with a slash at the end of a folder: its checkpoints are its own still."""
    run = build(tiny("dcgan"))
    run.run_id = "before"
    play(run, 1)
    assert run.save()
    run.stream.close()
    again = build(tiny("dcgan"))
    assert (again.step, again.run_id) == (1, "before")
    assert again.save()  # in the place of the one that it goes on from
    again.stream.close()


def test_other_folders_are_others():
    both, one = {"data": {"more": ["fonts", "hanzi-web"]}}, {"data": {"more": "fonts"}}
    assert rundir.differences(both, one) == [("data.more", ["fonts", "hanzi-web"], "fonts")]
    assert not rundir.differences({"init": "runs/a/"}, {"init": "runs/a"})
    assert rundir.differences({"data": {"path": "/"}}, {"data": {"path": ""}})
    assert rundir.differences({"recipe": {"name": "a/"}}, {"recipe": {"name": "a"}})


def test_an_older_checkpoint_puts_the_newer_ones_aside(tmp_path):
    play(trainer(tmp_path), 2)
    first = newest(tmp_path)
    run = trainer(tmp_path)
    play(run, 4)
    said = []
    again = trainer(tmp_path)
    rundir.begin(again, first, said.append)
    assert newest(tmp_path) == first
    assert any("ahead-of-2-step-00000004" in line for line in said)
    aside = tmp_path / "checkpoints" / "ahead-of-2-step-00000004"
    assert checkpoint.load(aside).step == 4  # nothing is lost
    rundir.release(tmp_path)


@pytest.mark.parametrize("place", ["run", "branch"])
def test_the_same_command_goes_on_from_what_came_of_its_checkpoint(tiny, place):
    """In the run's own directory or another one, also once that checkpoint is rotated away."""

    def started(resume, run_dir, until):
        run = build(tiny("dcgan", f"resume={resume}", f"run_dir={run_dir}"), said.append)
        at = run.step
        play(run, until)
        run.stream.close()
        return at

    said, path = [], "run/checkpoints/step-00000001"
    assert [started("auto", "run", until) for until in (1, 3)] == [0, 1]
    assert started(path, place, 2) == 1
    shutil.copytree(path, "kept/step-00000001")
    shutil.rmtree(path)
    assert started(path, place, 3) == 2
    assert any(f"has come from resume={path} and is gone on with" in line for line in said)
    assert started("auto", place, 4) == 3
    assert started(Path(path).absolute(), place, 4) == 4
    aside = ["ahead-of-1-step-00000003"] if place == "run" else []
    assert [path.name for path in Path(place).glob("checkpoints/ahead-*")] == aside
    with pytest.raises(ConfigError, match=f"resume={path} does not exist"):
        started(path, "other", 2)
    assert started("kept/step-00000001", "other", 2) == 1  # a second branch
    assert started("kept/step-00000001", place, 2) == 1  # and one in place of the first


def test_what_a_start_without_a_checkpoint_left_binds_no_other(tiny):
    linear = [f"schedule@schedule.{side}=linear" for side in ("generator", "discriminator")]
    first = build(tiny("dcgan", *linear, "trainer.steps=2"))  # which dies before it saves
    first.stream.close()
    rundir.release(Path("run"))
    again = build(tiny("dcgan", *linear, "trainer.steps=8", "optimizer.generator.lr=1e-3"))
    again.stream.close()
    assert [player.schedule(4) for player in again.players] == [0.5, 0.5]
    assert yaml.safe_load(Path("run/config.yaml").read_text()) == yaml.safe_load(again.config)


@pytest.mark.parametrize("left", ["finished.json", "checkpoints/step-00000004/manifest.json"])
def test_what_has_run_binds_others_though_no_checkpoint_can_be_read(tiny, left):
    build(tiny("dcgan")).stream.close()
    rundir.release(Path("run"))
    Path("run", left).parent.mkdir(parents=True, exist_ok=True)
    Path("run", left).write_text("{}")
    with pytest.raises(ConfigError, match="optimizer.generator.lr was 0.0002 and is now 0.001"):
        build(tiny("dcgan", "optimizer.generator.lr=1e-3"))


def test_checkpoints_without_their_directorys_configuration_are_held_to_their_own(tiny):
    run = build(tiny("dcgan"))
    run.play()
    assert run.save()
    run.stream.close()
    rundir.release(Path("run"))
    Path("run/config.yaml").unlink()
    with pytest.raises(ConfigError, match="optimizer.generator.lr was 0.0002 and is now 0.001"):
        build(tiny("dcgan", "optimizer.generator.lr=1e-3"))
    build(tiny("dcgan")).stream.close()
    assert yaml.safe_load(Path("run/config.yaml").read_text()) == yaml.safe_load(run.config)


def test_a_buffer_that_no_checkpoint_keeps_is_refused_at_the_start(tmp_path):
    run = trainer(tmp_path)
    mask = torch.full((3, 3), -torch.inf).triu(1)
    run.recipe.generator.register_buffer("mask", mask, persistent=False)
    rundir.begin(run, None, print)
    rundir.release(tmp_path)
    run.recipe.generator.register_buffer("mask", mask)
    with pytest.raises(ConfigError, match=r"generator\.mask has NaN or infinite.*persistent=False"):
        rundir.begin(run, None, print)


@pytest.mark.row("C14")
def test_a_misfit_of_an_optimizer_leaves_networks_and_the_other_one_as_they_were(tmp_path, tried):
    play(trainer(tmp_path), 2)
    stored = checkpoint.load(newest(tmp_path))
    name = next(n for n, t in stored.optimizers.items() if n.startswith("discrim") and t.ndim)
    stored.optimizers[name] = stored.optimizers[name][:1, ..., None]
    run = trainer(tmp_path, seed=1)
    before = everything(run)
    with pytest.raises(CheckpointError, match="the state of Adam does not fit"):
        state.spread(stored, run.recipe, run.averages, run.players)
    assert differing(before, everything(run)) == set()
    tried(1)


def spoilt(folder):
    """Flip a bit of all networks that are kept, under manifests that stay as they were."""
    for path in folder.glob("checkpoints/step-*/networks.safetensors"):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)


def kept(folder):
    return sorted(path.name for path in folder.glob("checkpoints/*step-*"))


@pytest.mark.parametrize("start", ["all are damaged", "an older one from elsewhere"])
def test_what_lies_ahead_of_a_start_costs_no_new_checkpoint(tmp_path, start):
    """Rotation ranks by step: a new one would be the oldest, and gone when it is written."""
    folder, found, step = tmp_path / "run", None, 0
    if start == "an older one from elsewhere":
        play(trainer(tmp_path / "other"), 2)
        found, step = newest(tmp_path / "other"), 2
    assert trainer(folder, steps=8).train()
    if start == "all are damaged":
        spoilt(folder)
    assert kept(folder) == ["step-00000006", "step-00000008"]
    run, said = trainer(folder, steps=5), []
    assert checkpoint.newest(folder / "checkpoints", said.append) is None or found
    rundir.begin(run, found, said.append)
    assert run.train()
    assert newest(folder).name == "step-00000005"
    new, old = ["step-00000004", "step-00000005"], ["step-00000006", "step-00000008"]
    aside = [f"ahead-of-{step}-{name}" for name in old]
    assert kept(folder) == [*aside, *new]  # nothing is lost
    assert all(any(name in line for line in said) for name in aside)


def test_a_start_without_a_whole_checkpoint_loses_no_number(tmp_path, capsys):
    assert trainer(tmp_path, steps=4, log_every=1).train()
    before = (tmp_path / "metrics.jsonl").read_text()
    spoilt(tmp_path)
    run = trainer(tmp_path, steps=2, log_every=1)
    rundir.begin(run, None, print)
    assert run.train()
    aside = tmp_path / "ahead-of-0-metrics.jsonl"
    assert aside.read_text() == before
    assert [line["step"] for line in scalars(tmp_path)] == [1, 2]
    assert f"{aside} keeps the numbers" in capsys.readouterr().out
    assert resumed(tmp_path, steps=3, log_every=1).train()
    assert len(list(tmp_path.glob("ahead-*"))) == 1


@pytest.mark.parametrize("resume", ["auto", "run/checkpoints/step-00000001"])
def test_a_run_whose_checkpoints_cannot_be_read_now_is_not_started_anew(tiny, monkeypatch, resume):
    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    run = build(tiny("dcgan"))
    play(run, 1)
    run.stream.close()
    rundir.release(Path("run"))
    before = kept(Path("run"))
    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "read_manifest", failing)
        with pytest.raises(CheckpointError, match="step-00000001 may be whole.*Input/output error"):
            build(tiny("dcgan", f"resume={resume}"))
    assert kept(Path("run")) == before
    again = build(tiny("dcgan"))
    again.stream.close()
    assert again.step == 1


def test_the_checkpoint_just_written_is_never_rotated_away(tmp_path):
    run = trainer(tmp_path, keep=2)
    for step in (8, 6, 4):
        run.step = step
        assert run.save()
        assert (tmp_path / f"checkpoints/step-{step:08d}").exists()


# -- order of samples


@pytest.mark.row("C10", "the same samples however far ahead they are read, from any position")
def test_read_ahead_and_the_place_of_a_resume_change_no_sample(glyph_store, tried):
    from gan.data.datasets import Images
    from gan.data.store import Store
    from gan.data.stream import Stream

    def batches(position, ahead):
        device = torch.device("cpu")
        images = Images(Store(glyph_store), label="style", flip=True)
        stream = Stream(images, 64, 3, device, ["real", "label"], position=position, ahead=ahead)
        found = [next(stream) for _ in range(position, 10)]  # 280 samples: over two epochs' ends
        stream.close()
        return found

    expected = batches(0, 3)
    for ahead in (1, 2, 3):
        for position in (0, 3, 4, 5, 9):
            for mine, other in zip(batches(position, ahead), expected[position:], strict=True):
                assert torch.equal(mine["real"], other["real"])
                assert torch.equal(mine["label"], other["label"])
    tried(15)
