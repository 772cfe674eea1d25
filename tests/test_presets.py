"""Every model preset: its sources' numbers, and a short run that stops and goes on."""

import re

import pytest
import torch
from test_trainer import assert_same, everything
from tiny_glyphs import TinyGlyphs

from gan.build import build
from gan.commands.train import conf_dir
from gan.config import rehearsal
from gan.config.check import check
from gan.data.store import build as build_store

PRESETS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


def both(lr, betas):
    sides = ("generator", "discriminator")
    adam = {f"optimizer.{side}.name": "adam" for side in sides}
    return (
        adam
        | {f"optimizer.{side}.lr": lr for side in sides}
        | {f"optimizer.{side}.betas": betas for side in sides}
    )


def decay(schedule):
    return {f"schedule.{side}.name": schedule for side in ("generator", "discriminator")}


SOURCES = {  # what the papers and the authors' code say; None is off
    "dcgan": {  # arXiv:1511.06434, section 4
        **both(2e-4, [0.5, 0.999]),
        "adversarial.name": "nonsaturating",
        "discriminator.norm": "batch",
        "trainer.n_critic": 1,
    },
    "wgan": {  # martinarjovsky/WassersteinGAN:main.py; arXiv:1701.07875, Algorithm 1
        "adversarial.name": "wasserstein",
        "optimizer.generator.name": "rmsprop",
        "optimizer.discriminator.name": "rmsprop",
        "optimizer.generator.lr": 5e-5,
        "optimizer.discriminator.lr": 5e-5,
        **decay("constant"),
        "clip.discriminator.weights": 0.01,
        "clip.generator.weights": None,
        "generator.name": "dcgan",
        "generator.latent": 100,
        "generator.width": 64,
        "discriminator.width": 64,
        "discriminator.norm": "batch",
        "penalties": {},
        "trainer.batch_size": 64,
        "trainer.n_critic": 5,
    },
    "wgan_gp": {  # igul222/improved_wgan_training:gan_cifar_resnet.py; arXiv:1704.00028
        "adversarial.name": "wasserstein",
        **both(2e-4, [0.0, 0.9]),
        **decay("linear"),
        "schedule.generator.start": 0.0,
        "schedule.generator.end": 0.0,
        "penalties.wgan_gp.weight": 10.0,
        "penalties.wgan_gp.every": 1,
        "clip.discriminator.weights": None,
        "generator.name": "resnet",
        "generator.width": 128,
        "generator.latent": 128,
        "discriminator.width": 128,
        "discriminator.norm": "none",
        "trainer.batch_size": 64,
        "trainer.n_critic": 5,
        "trainer.steps": 100_000,
    },
    "sngan": {  # kwotsin/mimicry:examples/sngan_example.py; arXiv:1802.05957
        "adversarial.name": "hinge",
        **both(2e-4, [0.0, 0.9]),
        **decay("linear"),
        "schedule.discriminator.start": 0.0,
        "schedule.discriminator.end": 0.0,
        "penalties": {},
        "generator.name": "resnet",
        "generator.width": 256,
        "generator.latent": 128,
        "discriminator.width": 128,
        "discriminator.norm": "spectral",
        "trainer.batch_size": 64,
        "trainer.n_critic": 5,
        "trainer.steps": 100_000,
    },
    "lsgan": {  # POSTECH-CVLab/PyTorch-StudioGAN:src/configs/CIFAR10/LSGAN.yaml; arXiv:1611.04076
        "adversarial.name": "lsgan",
        "adversarial.real": 1.0,
        "adversarial.fake": 0.0,
        "adversarial.aim": 1.0,
        **both(2e-4, [0.5, 0.999]),
        **decay("constant"),
        "trainer.batch_size": 64,
        "trainer.n_critic": 2,
        "trainer.steps": 200_000,
    },
    "dragan": {  # kodalinaveen3/DRAGAN:DRAGAN.ipynb; arXiv:1705.07215, Algorithm 1
        "adversarial.name": "nonsaturating",
        **both(1e-4, [0.5, 0.9]),
        **decay("constant"),
        "penalties.dragan.weight": 10.0,
        "penalties.dragan.target": 1.0,
        "penalties.dragan.noise": pytest.approx(10 / 127.5, rel=0.05),
        "generator.latent": 100,
        "trainer.batch_size": 128,
        "trainer.n_critic": 1,
    },
    "pix2pix": {  # arXiv:1611.07004; junyanz/pytorch-CycleGAN-and-pix2pix
        "adversarial.name": "nonsaturating",
        **both(2e-4, [0.5, 0.999]),
        **decay("linear"),
        "schedule.generator.start": 0.5,
        "schedule.discriminator.start": 0.5,
        "schedule.generator.end": 0.0,
        "schedule.discriminator.end": 0.0,
        "average.name": "none",
        "penalties": {},
        "reconstruction": {},
        "recipe.weight": 1.0,
        "recipe.discriminator_weight": 0.5,
        "recipe.l1": 100.0,
        "recipe.pool": 0,
        "generator.name": "unet",
        "generator.dropout": 0.5,
        "generator.noise": True,
        "discriminator.name": "patch",
        "trainer.order": "discriminator",
        "trainer.n_critic": 1,
    },
    "cyclegan": {  # arXiv:1703.10593; junyanz/pytorch-CycleGAN-and-pix2pix
        "adversarial.name": "lsgan",
        "adversarial.real": 1.0,
        "adversarial.fake": 0.0,
        "adversarial.aim": 1.0,
        **both(2e-4, [0.5, 0.999]),
        **decay("linear"),
        "schedule.generator.start": 0.5,
        "schedule.discriminator.start": 0.5,
        "schedule.generator.end": 0.0,
        "schedule.discriminator.end": 0.0,
        "average.name": "none",
        "penalties": {},
        "recipe.weight": 2.0,
        "recipe.discriminator_weight": 0.5,
        "recipe.cycle": 10.0,
        "recipe.identity": 5.0,
        "recipe.pool": 50,
        "generator.name": "translators",
        "generator.norm": "instance",
        "generator.padding": "reflect",
        "discriminator.name": "patches",
        "discriminator.norm": "instance",
        "trainer.order": "generator",
        "trainer.n_critic": 1,
    },
    "cgan": {  # kwotsin/mimicry's cGAN-PD; arXiv:1802.05637
        "adversarial.name": "hinge",
        **both(2e-4, [0.0, 0.9]),
        **decay("linear"),
        "penalties": {},
        "recipe.name": "conditional",
        "generator.name": "resnet",
        "generator.width": 256,
        "generator.latent": 128,
        "generator.norm": "conditional",
        "discriminator.width": 128,
        "discriminator.norm": "spectral",
        "discriminator.condition": "projection",
        "trainer.batch_size": 64,
        "trainer.n_critic": 5,
        "trainer.steps": 100_000,
    },
    "acgan": {  # arXiv:1610.09585, appendix, CIFAR-10
        "adversarial.name": "nonsaturating",
        **both(2e-4, [0.5, 0.999]),
        **decay("constant"),
        "recipe.name": "conditional",
        "recipe.class_real": 1.0,
        "recipe.class_fake": 1.0,
        "recipe.class_generator": 1.0,
        "generator.latent": 110,
        "discriminator.condition": "auxiliary",
        "trainer.batch_size": 100,
        "trainer.n_critic": 1,
        "trainer.steps": 50_000,
    },
    "r3gan": {  # brownvc/R3GAN:train.py, CIFAR10; arXiv:2501.05441
        "adversarial.name": "rpgan",
        **both(2e-4, [0.0, 0.99]),
        **decay("cosine"),
        "schedule.generator.end": 0.25,
        "schedule.discriminator.end": 0.25,
        **{f"penalties.{name}.weight": 0.05 for name in ("r1", "r2")},
        **{f"penalties.{name}.end": 0.1 for name in ("r1", "r2")},
        **{f"penalties.{name}.images": 20_000_000 for name in ("r1", "r2")},
        **{f"penalties.{name}.every": 1 for name in ("r1", "r2")},
        "generator.name": "resnext",
        "generator.latent": 64,
        **{f"{side}.width": 768 for side in ("generator", "discriminator")},
        **{f"{side}.cap": 1 for side in ("generator", "discriminator")},
        **{f"{side}.blocks": 2 for side in ("generator", "discriminator")},
        **{f"{side}.expansion": 2 for side in ("generator", "discriminator")},
        **{f"{side}.group": 16 for side in ("generator", "discriminator")},
        "average.halflife": 5_000_000,
        "trainer.batch_size": 512,
        "trainer.steps": round(20_000_000 / 512 + 0.5),
        "trainer.n_critic": 1,
    },
    "wnet": {  # arXiv:2406.06122
        "adversarial.name": "wasserstein",
        "penalties.wgan_gp.weight": 10.0,
        "optimizer.generator.lr": 5e-4,
        "optimizer.discriminator.lr": 5e-4,
        "optimizer.generator.betas": [0.5, 0.999],
        "trainer.batch_size": 32,
    },
}


PUBLISHED = {  # experiments at the size of the papers
    "pix2pix_256": {
        "image.size": 256,
        "generator.width": 64,
        "generator.norm": "batch",
        "discriminator.width": 64,
        "discriminator.layers": 3,
        "discriminator.norm": "batch",
        "trainer.batch_size": 1,
        "trainer.steps": 200 * 400,
    },
    "cyclegan_256": {
        "image.size": 256,
        "generator.width": 64,
        "generator.blocks": 9,
        "discriminator.width": 64,
        "discriminator.layers": 3,
        "trainer.batch_size": 1,
        "trainer.steps": 200 * 1067,
    },
}


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


@pytest.fixture
def unrehearsed(monkeypatch):
    """Numbers need no networks; the slow tier builds those of every preset."""
    monkeypatch.setattr("gan.config.check.rehearse", lambda _: None)


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("preset", SOURCES)
def test_resolved_numbers_are_those_of_the_sources(composed, preset):
    values = check(composed(f"model={preset}")).values
    assert {path: at(values, path) for path in SOURCES[preset]} == SOURCES[preset]


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("experiment", PUBLISHED)
def test_experiments_at_published_size_have_the_published_numbers(composed, experiment):
    values = check(composed(f"experiment={experiment}", "data.path=x")).values
    expected = SOURCES[experiment.removesuffix("_256")] | PUBLISHED[experiment]
    assert {path: at(values, path) for path in expected} == expected


@pytest.mark.usefixtures("unrehearsed")
def test_what_r3gans_preset_advises_is_taken(composed):
    header = (conf_dir() / "model" / "r3gan.yaml").read_text().partition("defaults:")[0]
    advised = re.findall(r"\b(?:recipe|data|augment)[\w.]*=[\w.]+", header)
    assert len(advised) > 2
    check(composed("model=r3gan", "data=folder", "data.path=x", *advised))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_themselves_and_cite_a_paper(composed, preset):
    assert composed(f"model={preset}")["model"] == preset
    header = re.match(r"(#.*\n)+", (conf_dir() / "model" / f"{preset}.yaml").read_text())
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", header.group())


TINY = {"width": 2, "latent": 4, "feature": 0}  # wherever a section has these


def shrunk(values):
    """The same game with narrow networks and few images."""
    for section in ("generator", "discriminator", "recipe"):
        values[section] |= {key: n for key, n in TINY.items() if key in values[section]}
    values["trainer"] |= {"batch_size": 4, "steps": 2, "log_every": 1}
    return values


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_played_without_memory(composed, preset, monkeypatch):
    """What the meta device cannot do would end a rehearsal early, and nobody would know."""
    failed = []
    monkeypatch.setattr(rehearsal, "_conclusive", failed.append)
    check(shrunk(composed(f"model={preset}")))
    assert not failed


class LargerGlyphs(TinyGlyphs):
    """The tiny glyphs at 32 pixels."""

    shape = (32, 32, 1)

    def fingerprint(self):
        return "larger"

    def __iter__(self):
        for record in super().__iter__():
            yield record._replace(image=record.image.repeat(2, 0).repeat(2, 1))


@pytest.fixture(scope="module")
def larger_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("glyphs") / "larger.lmdb"
    build_store(LargerGlyphs(), path)
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_networks_play_in_bf16_and_weights_stay_in_float32(composed, larger_store, preset):
    data = ["data=fonts", f"data.path={larger_store}", "image.size=32", "trainer.precision=bf16"]
    run = build(shrunk(composed(f"model={preset}", *data, "run_dir=run")))
    seen = {side: set() for side in ("generator", "discriminator")}
    for side, kinds in seen.items():
        for part in run.recipe.get_submodule(side).modules():
            part.register_forward_hook(
                lambda _, __, out, kinds=kinds: kinds.add(getattr(out, "dtype", 0))
            )
    run.play()
    run.stream.close()
    assert all(torch.bfloat16 in kinds for kinds in seen.values())
    tensors, _ = everything(run)
    kinds = {name: t.dtype for name, t in tensors.items() if t.is_floating_point()}
    assert {*kinds.values()} == {torch.float32}
    assert all(t.isfinite().all() for t in tensors.values())


ADAPTIVE = [
    "augment.ada={every: 1, images: 8, target: 0, start: 0.5}",
    "augment.shift={}",
    "augment.noise={}",
]


@pytest.mark.slow
@pytest.mark.row("C7", "every preset, and one whose augmentation adapts")
@pytest.mark.parametrize(
    ("preset", "more"),
    [*((preset, []) for preset in PRESETS), pytest.param("dcgan", ADAPTIVE, id="adaptive")],
)
def test_stopped_and_continued_is_bit_identical_to_never_stopped(
    composed, larger_store, preset, more, tried
):
    data = ["data=fonts", f"data.path={larger_store}", "image.size=32"]

    def started(run_dir):
        values = shrunk(composed(f"model={preset}", *data, *more, f"run_dir={run_dir}"))
        values["trainer"] |= {"steps": 12}
        return build(values)

    whole = started("whole")
    blank = {name: t.clone() for name, t in everything(whole)[0].items()}
    assert whole.train()
    first = started("parts")
    while first.step < 5:
        if first.discriminator_updates < first.settings.discriminator_warmup:
            first.discriminate(shared=False)
        else:
            first.play()
    first.save()
    first.stream.close()
    second = started("parts")
    assert second.step == 5
    assert second.train()
    assert_same(everything(whole), everything(second))
    assert whole.step == 12
    for side in ("generator", "discriminator"):
        moved = [
            not t.equal(blank[name])
            for name, t in everything(whole)[0].items()
            if name.startswith(f"recipe/{side}")
        ]
        assert any(moved), side
    tried(1)
