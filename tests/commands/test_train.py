"""`train.py` as a user runs it: mistakes, multiruns, and what a run leaves behind."""

import json
import os
import signal
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import TRAIN, ended

from gan import features
from gan.commands import train
from gan.commands.train import job_folder
from gan.config.check import check
from gan.data import builder
from gan.run.signals import Stop

TINY = {
    "dcgan": ["generator.width=4", "discriminator.width=4", "generator.latent=8"],
    "wnet": ["generator.width=2", "discriminator.width=2", "recipe.feature=0"],
}
SMALL = ["image.size=16", "trainer.batch_size=8", "trainer.steps=4"]


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """Call the command in an empty directory: exit status and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        status = train.main(arguments)
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, mode, shape in [
        ("a", "RGB", (20, 31, 3)),
        ("b", "L", (40, 18)),
        ("c", "RGBA", (16, 16, 4)),
    ]:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 255, shape, dtype=np.uint8)
            Image.fromarray(pixels, mode=None if mode != "L" else "L").save(
                folder / f"{number}.png"
            )
    return tmp_path / "photos"


def glyphs(store):
    return ["data=fonts", f"data.path={store}", *SMALL]


MISTAKES = {
    "unknown model": (["model=wnett"], r"no model 'wnett'; did you mean 'wnet'"),
    "unknown data": (["data=hanzy"], r"no data 'hanzy'; did you mean 'hanzi'"),
    "unknown experiment": (["experiment=tpyo"], r"no experiment 'tpyo'"),
    "unknown loss": (["adversarial=hing"], r"no adversarial 'hing'; did you mean 'hinge'"),
    "misspelt key": (["generator.widht=8"], r"generator\.widht is unknown.*did you mean 'width'"),
    "misspelt key with plus": (
        ["+generator.widht=8"],
        r"generator\.widht is unknown; did you mean 'width'",
    ),
    "misspelt section": (["trianer.steps=8"], r"trianer is unknown; did you mean 'trainer'"),
    "misspelt top key": (["+sed=1"], r"sed is unknown; did you mean 'seed'"),
    "misspelt penalty": (["penalties.r3.weight=1"], r"no penalty 'r3'; did you mean 'r"),
    "misspelt penalty key": (
        ["penalties.r1.wieght=1"],
        r"penalties\.r1\.wieght is unknown; did you mean 'weight'",
    ),
    "wrong type": (["trainer.steps=many"], r"trainer\.steps must be a whole number, not 'many'"),
    "float for a count": (["trainer.steps=1e5"], r"whole number written as 100_000"),
    "zero size": (["image.size=0"], r"image\.size must be at least 1, not 0"),
    "negative size": (["image.size=-32"], r"image\.size must be at least 1, not -32"),
    "size not served": (["image.size=33"], r"image\.size.*33"),
    "zero n_critic": (["trainer.n_critic=0"], r"trainer\.n_critic must be at least 1, not 0"),
    "n_critic from later on": (
        ["trainer.n_critic={5: 2}"],
        r"trainer\.n_critic must say from step 0 on",
    ),
    "nan rate": (
        ["optimizer.generator.lr=nan"],
        r"optimizer\.generator\.lr must be a finite number",
    ),
    "infinite weight": (["recipe.l1=inf"], r"recipe\.l1 must be a finite number"),
    "negative rate": (
        ["optimizer.generator.lr=-1"],
        r"optimizer\.generator\.lr must be at least 0",
    ),
    "three betas": (["optimizer.generator.betas=[0.5,0.9,0.9]"], r"betas must hold 2 values"),
    "missing path": (["data=folder"], r"data\.path must be given"),
    "missing folder": (["data=folder", "data.path=nowhere", "model=dcgan"], r"nowhere"),
    "empty folder": (["data=folder", "data.path=empty", "model=dcgan"], r"empty"),
    "a target": (["+generator._target_=os.system"], r"only registered names are built"),
    "smoothing with Wasserstein": (
        ["adversarial.real=0.9"],
        r"adversarial\.real is unknown to adversarial=wasserstein; taken by bce and lsgan",
    ),
    "penalty with batch norm": (
        ["model=dcgan", "penalties.r1.weight=1"],
        r"penalties\.r1.*discriminator\.norm",
    ),
    "triples of a folder": (
        ["data=folder", "data.path=photos"],
        r"recipe=wnet reads prototype.*data=folder",
    ),
    "pairs of unrelated folders": (
        ["model=pix2pix", "data=pairs", "data.path=photos", "image.size=16"],
        r"data=pairs needs two sub-folders of images, one of each kind.*has 3: a, b, c",
    ),
    "a discriminator of one image for pairs": (
        ["model=dcgan", "recipe=pix2pix"],
        r"recipe=pix2pix needs a discriminator of images=2.*discriminator=dcgan.*choose patch",
    ),
    "one translator for two": (
        ["model=dcgan", "recipe=cyclegan"],
        r"recipe=cyclegan calls to_a, to_b of its generator, which generator=dcgan does not have",
    ),
    "patches larger than the image": (
        ["model=pix2pix", "image.size=8"],
        r"image\.size=8 is too small for discriminator\.layers=2.*use discriminator\.layers=1",
    ),
    "a batch of one": (["trainer.batch_size=1"], r"trainer\.batch_size=1 is too small"),
    "a seed of 64 bits": (
        ["seed=18446744073709551616"],
        r"seed must be at most 9223372036854775807",
    ),
    "reconstruction without a target": (
        ["model=dcgan", "reconstruction.l2.weight=1"],
        r"reconstruction\.l2 needs a target, which recipe=synthesis does not have",
    ),
    "cuda without a device": (["trainer.device=cuda"], r"trainer\.device=cuda"),
    "no checkpoint": (["resume=gone"], r"resume=gone does not exist"),
    "broken override": (["trainer.steps"], r"trainer\.steps"),
    "words that Hydra cannot read": (
        ["data.path=我的 字 (1)"],
        r"""data\.path=我的 字 \(1\) cannot be read: put .*, as 'data\.path="我的 字 \(1\)"'""",
    ),
    "a folder of Windows' that Hydra cannot read": (
        [r"data.path=C:\Program Files (x86)\p"],
        r"""cannot be read: put .*, as "data\.path='C:/Program Files \(x86\)/p'\"""",
    ),
    "a list that Hydra cannot read": (["freeze=[a"], r"freeze=\[a is not written as Hydra wants"),
    "digits for a word": (["data=folder", "data.path=2024"], r"""as 'data\.path="\.\.\."'"""),
    "key of a chosen part": (
        ["model=dcgan", "generator=mlp", "generator.norm=none"],
        r"generator\.norm is unknown to generator=mlp; taken by dcgan",
    ),
    "key of no average": (
        ["average=none", "average.halflife=3"],
        r"average\.halflife is unknown to average=none; taken by both and ema",
    ),
    "plug-ins as a word": (["plugins=json"], r"plugins must be a list.*plugins=\[json\]"),
}


QUICK = {  # one that Hydra finds, in a name, in a key; one of the check, the data, the checkpoints
    *("unknown loss", "misspelt key", "zero n_critic", "empty folder", "no checkpoint"),
    *("words that Hydra cannot read", "key of a chosen part"),
}


@pytest.mark.row("F6", "mistakes of the command line: status 2, one sentence, nothing written")
@pytest.mark.parametrize(
    "mistake", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MISTAKES]
)
def test_a_mistake_is_one_sentence_and_status_2_and_nothing_is_written(
    run, mistake, tmp_path, photos
):
    import re

    arguments, message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    if mistake == "cuda without a device" and __import__("torch").cuda.is_available():
        pytest.skip("there is a device")
    status, errors = run(
        *arguments, "run_dir=run", *(["image.size=16"] if "triples" in mistake else [])
    )
    assert status == 2, errors
    said = [line for line in errors.splitlines() if line.startswith("gan: ")]
    assert len(said) == 1
    assert re.search(message, said[0]), said
    assert "Traceback" not in errors
    assert not Path("run").exists()
    if "triples" not in mistake:
        assert not Path("data").exists()


@pytest.mark.row("S13")
def test_an_unreadable_image_is_named_and_no_store_is_left(run, photos):
    (photos / "a" / "broken.png").write_bytes(b"\x89PNG not really")
    status, errors = run("model=dcgan", "data=folder", "data.path=photos", *SMALL, *TINY["dcgan"])
    assert status == 2
    assert "broken.png" in errors
    assert not list(Path(".").glob("data/*.lmdb"))
    assert not Path("runs").exists()


@pytest.fixture
def asked_at(monkeypatch):
    """Send this process SIGTERM at a call of an object's attribute; gives the list of its calls."""

    def ask(owner, name, call=1):
        original, calls = getattr(owner, name), []

        def asked(*given, **named):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*given, **named)

        monkeypatch.setattr(owner, name, asked)
        return calls

    return ask


@pytest.mark.row("P1", "asked while a store is built: ends at once, and the same command goes on")
def test_a_signal_ends_the_building_of_a_store_at_once(composed, photos, asked_at, capfd, tried):
    values = composed("model=dcgan", "data=folder", f"data.path={photos}", *SMALL, *TINY["dcgan"])
    added = asked_at(builder.Builder, "add", call=5)
    with Stop() as stop, pytest.raises(KeyboardInterrupt):
        train.built(values, stop)
    assert len(added) == 5
    assert "stopped by SIGTERM before training; the same command goes on" in capfd.readouterr().out
    left = {path.name for path in Path("data").iterdir()}
    assert all(name.startswith(".") and name.endswith(".building") for name in left)
    assert len(check(values).create("data")) == 12
    tried(1)


@pytest.mark.row("P1", "asked while a classifier learns: ends at once, and nobody waits for it")
def test_a_signal_ends_the_lesson_of_a_classifier_at_once(tiny, asked_at, tried):
    values = tiny("wnet", "recipe.feature=1")
    asked_at(features, "shifted", call=2)
    with Stop() as stop, pytest.raises(KeyboardInterrupt):
        train.built(values, stop)
    (folder,) = Path("data/classifiers").iterdir()
    assert not list(folder.glob("step-*"))
    with features.alone(folder, pytest.fail):
        pass
    tried(1)


@pytest.mark.row("C15", "a run directory of another configuration: refused, keys named")
def test_a_run_directory_of_another_configuration_is_refused(run, glyph_store):
    common = ["model=dcgan", *glyphs(glyph_store), *TINY["dcgan"], "run_dir=run"]
    assert run(*common)[0] == 0
    before = Path("run/config.yaml").read_text()
    status, errors = run(*common, "optimizer.generator.lr=1e-3")
    assert status == 2
    assert "optimizer.generator.lr was 0.0002 and is now 0.001" in errors
    assert Path("run/config.yaml").read_text() == before
    assert run(*common, "trainer.steps=5", "trainer.log_every=1")[0] == 0
    status, errors = run(*common, "resume=never")
    assert status == 2
    assert "not empty" in errors


def test_any_folder_of_images_trains(run, photos):
    status, errors = run("model=dcgan", "data=folder", "data.path=photos", *SMALL, *TINY["dcgan"])
    assert status == 0, errors
    folder = Path("runs/dcgan-folder")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "samples",
        "finished.json",
    }
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4
    assert line["images"] == line["discriminator_updates"] * 8 == 32
    for tag in ("generator/adversarial", "discriminator/adversarial", "discriminator/logits_real"):
        assert isinstance(line[tag], float)
    for tag in ("generator/learning_rate", "generator/gradient_norm", "speed/images_per_second"):
        assert line[tag] > 0


MEASURED = ("l1", "ssim", "sharpness", "content", "style")


def test_wnet_shows_samples_and_ends_with_a_report(run, glyph_store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    best = "trainer.best=metric/validation_style"
    status, errors = run("model=wnet", *glyphs(glyph_store), *TINY["wnet"], best)
    assert status == 0, errors
    folder = Path("runs/wnet-fonts")
    report = (folder / "report.txt").read_text()
    for word in (
        "prototype copy",
        "stroke-matched",
        "W-Net",
        "UFUC",
        "shuffled reference minus W-Net",
    ):
        assert word in report
    shown = {path.name for path in (folder / "samples").iterdir()}
    assert shown == {
        f"{style}-{character}-{step:08d}.png"
        for style in ("seen-style", "new-style")
        for character in ("seen-character", "new-character")
        for step in (0, 4)
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for line in lines for tag in line}
    measured = {f"{which}validation_{name}" for which in ("", "raw_") for name in MEASURED}
    assert {f"metric/{name}" for name in measured} | {"best/validation_style"} <= tags
    assert "that judges read rightly: content " in report
    eight = (
        "adversarial style_class encoder_character encoder_style l1 constant_content constant_style"
    )
    assert {f"generator/{name}" for name in eight.split()} <= tags
    board = EventAccumulator(str(folder / "tensorboard")).Reload().Tags()
    scalars = {"generator/l1", "discriminator/wgan_gp", "discriminator/learning_rate"}
    pictures = {"samples/new-style-new-character", "samples/seen-style-seen-character"}
    assert scalars <= {*board["scalars"]}
    assert pictures <= {*board["images"]}
    assert {"config/text_summary", "report/text_summary"} <= {*board["tensors"]}


@pytest.mark.parametrize("models", ["dcgan", pytest.param("dcgan,wnet", marks=pytest.mark.slow)])
def test_a_multirun_trains_every_combination_in_its_own_directory(run, glyph_store, models):
    widths = ["generator.width=4", "discriminator.width=4"]
    jobs = 2 * len(models.split(","))
    arguments = [
        "-m",
        f"model={models}",
        "seed=0,1",
        *glyphs(glyph_store),
        *widths,
        "trainer.steps=2",
    ]
    status, errors = run(*arguments, "sweep=four")
    assert status == 0, errors
    folders = [path for path in Path("runs/four").iterdir() if path.is_dir()]
    assert len(folders) == jobs
    for folder in folders:
        assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert len({(folder / "config.yaml").read_text() for folder in folders}) == jobs
    table = Path("runs/four/compare.md").read_text()
    assert table.count(" | 2       | ") == jobs // 2  # two seeds each
    assert "model=wnet" in table or models == "dcgan"


@pytest.mark.parametrize("seeds", [(-1, 0), pytest.param((0, -1, 1, -2), marks=pytest.mark.slow)])
def test_one_failing_job_does_not_stop_the_others(run, glyph_store, seeds):
    wrong = [seed for seed in seeds if seed < 0]
    arguments = [
        "-m",
        f"seed={','.join(map(str, seeds))}",
        "model=dcgan",
        *glyphs(glyph_store),
        *TINY["dcgan"],
        "sweep=three",
    ]
    status, errors = run(*arguments)
    assert status == 2
    assert "seed must be at least 0" in errors
    assert all(f"not {seed}" in errors for seed in wrong)
    assert f"gan: {len(wrong)} of {len(seeds)} jobs failed" in errors
    trained = [path for path in Path("runs/three").iterdir() if (path / "metrics.jsonl").exists()]
    assert len(trained) == len(seeds) - len(wrong)


def test_a_failed_job_leaves_no_trainer_behind(run, glyph_store, monkeypatch):
    trainers, living = [], []

    def fail(trainer):
        living.append(sum(there() is not None for there in trainers))
        trainers.append(weakref.ref(trainer))
        raise RuntimeError("planned")

    monkeypatch.setattr("gan.trainer.Trainer.play", fail)
    small = [*glyphs(glyph_store), *TINY["dcgan"], "sweep=failing"]
    status, errors = run("-m", "model=dcgan", "seed=0,1", *small)
    assert status == 1
    assert errors.count("RuntimeError: planned") == 2  # the end of each log
    assert living == [0, 0]


def test_a_job_folder_is_short_safe_and_its_own():
    assert job_folder("model=wnet,seed=1") == "model=wnet,seed=1"
    assert "/" not in job_folder("data.path=photos/x,seed=1")
    alike = {job_folder(f"data.path=photos{sign}x,seed=1") for sign in "/_ @-"}
    assert len(alike) == 5
    assert job_folder("data.path=photos_x,rates={a:1},seed=1") == (
        "data.path=photos_x,rates=_a_1_,seed=1"
    )
    long = job_folder(",".join(f"recipe.l{n}=1" for n in range(100)))
    assert len(long) <= 200
    assert long != job_folder(",".join(f"recipe.l{n}=2" for n in range(100)))
    assert job_folder("seed=1,trainer.device=cpu") == "seed=1"
    drawn = job_folder("data.characters=" + "".join(map(chr, range(0x4E00, 0x4E78))))
    assert len(drawn.encode()) <= 200


def test_a_stopped_process_saves_and_the_same_command_finishes(run, script, tmp_path, glyph_store):
    """The script itself, stopped by a signal from outside."""
    same = ["model=dcgan", "data=fonts", *SMALL, *TINY["dcgan"], "run_dir=run"]
    child = script(*same, "trainer.steps=100000", "trainer.log_every=1")
    for line in child.stdout:
        if line.startswith("step 3/"):
            break
    child.send_signal(signal.SIGTERM)
    status, said = ended(child)
    assert status == 1
    assert "stopped by SIGTERM" in said
    step = int(max((tmp_path / "run/checkpoints").glob("step-*")).name.removeprefix("step-"))
    same.append(f"data.path={glyph_store}")
    status, errors = run(*same, f"trainer.steps={step + 2}", "trainer.log_every=1")
    assert status == 0, errors
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, step + 3)]


def test_train_py_and_the_core_stay_small():
    root = TRAIN.parent
    core = [
        "train.py",
        *(
            f"gan/{name}.py"
            for name in ("registry", "recipe", "player", "trainer", "build", "average")
        ),
        "gan/losses/adversarial.py",
        "gan/losses/penalties.py",
        "gan/recipes/synthesis.py",
    ]
    lines = {name: len((root / name).read_text().splitlines()) for name in core}
    assert lines["train.py"] <= 30
    assert sum(lines.values()) <= 900, lines
