"""Other frameworks beside ours, on tiny ones that are written here: nothing is installed."""

import importlib
import sys
from dataclasses import replace

import pytest
from torch import Tensor

from gan.bench import data, peers, steps
from gan.bench.options import Options

NETWORKS = """
import torch
from torch import nn

class Generator(nn.Module):
    nz = encoding_dims = 4

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 192))

    def forward(self, z):
        return self.layers(z).view(-1, 3, 8, 8).tanh()

class Judge(nn.Module):
    def __init__(self, width):
        super().__init__()
        first = nn.utils.spectral_norm(nn.Linear(192, width))
        self.layers = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, 1))

    def forward(self, image):
        return self.layers(image)

def moved(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
"""
MIMICRY = {
    "__init__": "import nothing_like_this",  # as its start asks for what a step does not need
    "nets.__init__": "",
    "training.__init__": "",
    "training.metric_log": """
class MetricLog(dict):
    def add_metric(self, name, value):
        self[name] = value
""",
    "nets.sngan": NETWORKS
    + """
from skimage import io
import torch_mimicry
from torch.nn.functional import relu

class SNGANGenerator8(Generator):
    def __init__(self, ngf):
        super().__init__(ngf)

    def train_step(self, real_batch, netD, optG, log_data, device):
        fake = self.forward(torch.randn((len(real_batch[0]), self.nz), device=device))
        log_data.add_metric("errG", moved(optG, -netD(fake).mean()))
        return log_data

class SNGANDiscriminator8(Judge):
    def __init__(self, ndf):
        super().__init__(ndf)

    def train_step(self, real_batch, netG, optD, log_data, device):
        fake = netG.forward(torch.randn((len(real_batch[0]), netG.nz), device=device)).detach()
        on_real, on_fake = self(real_batch[0]), self(fake)
        loss = relu(1 - on_real).mean() + relu(1 + on_fake).mean()
        log_data.add_metric("errD", moved(optD, loss))
        return log_data
""",
}
TORCHGAN = {
    "__init__": "",
    "models": NETWORKS
    + """
def DCGANGenerator(out_size, out_channels, step_channels):
    return Generator(step_channels)

def DCGANDiscriminator(in_size, in_channels, step_channels):
    return Judge(step_channels)
""",
    "losses": """
from torch.nn.functional import softplus

class MinimaxGeneratorLoss:
    side = "generator"

    def __call__(self, on_fake):
        return softplus(-on_fake).mean()

class MinimaxDiscriminatorLoss:
    side = "discriminator"

    def __call__(self, on_real, on_fake):
        return softplus(-on_real).mean() + softplus(on_fake).mean()
""",
    "trainer": """
import torch
from torchgan.models import moved

class Trainer:
    def __init__(self, models, losses_list, device, checkpoints, recon):
        self.losses, self.networks, self.optimizers = losses_list, {}, {}
        for side, model in models.items():
            self.networks[side] = model["name"]()
            weights = self.networks[side].parameters()
            self.optimizers[side] = model["optimizer"]["name"](weights)

    def train_iter(self):
        for loss in self.losses:
            fake = self.networks["generator"](torch.randn(self.batch_size, 4))
            judge = self.networks["discriminator"]
            if loss.side == "generator":
                moved(self.optimizers["generator"], loss(judge(fake)))
            else:
                value = loss(judge(self.real_inputs), judge(fake.detach()))
                moved(self.optimizers["discriminator"], value)
""",
}
STUDIOGAN = {
    "config": """
from types import SimpleNamespace
import kornia.filters
from pkg_resources import parse_version

assert parse_version("1.10") > parse_version("1.9")

class Configurations:
    def __init__(self, path):
        assert path.read_text() == "labels"
        for section in ("DATA", "OPTIMIZATION", "MODEL", "STYLEGAN", "MODULES", "RUN"):
            setattr(self, section, SimpleNamespace())

    def update_cfgs(self, values, super):
        vars(getattr(self, super)).update(values)
""",
    "models.__init__": "",
    "models.model": NETWORKS
    + """
class LabelledGenerator(Generator):
    z_dim = 4

    def __init__(self, width, classes):
        super().__init__(width)
        self.shift = nn.Embedding(classes, 3)

    def forward(self, z, label, eval=False):
        return super().forward(z) + self.shift(label)[:, :, None, None]

class LabelledJudge(Judge):
    def __init__(self, width, classes):
        super().__init__(width)
        self.shift = nn.Embedding(classes, 1)

    def forward(self, image, label, eval=False):
        return {"adv_output": (super().forward(image) + self.shift(label)).squeeze()}

def load_generator_discriminator(
    DATA, OPTIMIZATION, MODEL, STYLEGAN, MODULES, RUN, device, logger
):
    assert DATA.img_size == 8
    generator = LabelledGenerator(4 * MODEL.g_conv_dim, DATA.num_classes)
    judge = LabelledJudge(2 * MODEL.d_conv_dim, DATA.num_classes)
    return generator, None, None, judge, None, None, None, None
""",
    "worker": """
import torch
import wandb
from sklearn.metrics import top_k_accuracy_score
from torch.nn.functional import relu
from models.model import moved

class WORKER:
    def __init__(self, cfgs, run_name, Gen, Dis, train_dataloader, global_rank, local_rank, logger):
        assert global_rank > 0  # the first one reports
        self.cfgs, self.Gen, self.Dis, self.loader = cfgs, Gen, Dis, train_dataloader

    def prepare_train_iter(self, epoch_counter):
        self.batches = iter(self.loader)

    def judged(self, frozen):
        many = self.cfgs.OPTIMIZATION.batch_size
        label = torch.randint(self.cfgs.DATA.num_classes, (many,))
        fake = self.Gen(torch.randn(many, 4), label)
        return self.Dis(fake.detach() if frozen else fake, label)["adv_output"]

    def train_discriminator(self, current_step):
        on_real = self.Dis(*next(self.batches))["adv_output"]
        loss = relu(1 - on_real).mean() + relu(1 + self.judged(frozen=True)).mean()
        moved(self.cfgs.OPTIMIZATION.d_optimizer, loss)

    def train_generator(self, current_step):
        moved(self.cfgs.OPTIMIZATION.g_optimizer, -self.judged(frozen=False).mean())
""",
}
BLIND = "super(type(self.Gen), self.Gen).forward(torch.randn(many, 4))"
FFCV = {
    "__init__": "",
    "fields.__init__": """
class RGBImageField:
    def __init__(self, write_mode, jpeg_quality):
        self.mode = write_mode
""",
    "fields.rgb_image": "class SimpleRGBImageDecoder: pass",
    "writer": """
from pathlib import Path

class DatasetWriter:
    def __init__(self, path, fields, num_workers):
        self.path, self.mode = path, fields["image"].mode

    def from_indexed_dataset(self, images):
        Path(self.path).write_text(f"{self.mode} {len(images)}")
""",
    "loader": """
from enum import Enum
from pathlib import Path

OrderOption = Enum("OrderOption", ["RANDOM"])

def Loader(path, batch_size, num_workers, order, pipelines):
    mode, count = Path(path).read_text().split()
    assert mode in path
    return [sum(range(3000)) for _ in range(int(count) // batch_size)]
""",
}
OURS = {"mimicry": "tiny_sngan", "torchgan": "tiny", "studiogan": "tiny_sngan"}
FOREIGN = ("torch_mimicry", "torchgan", "config", "models", "worker", "ffcv")
SHORT = Options(rounds=2, steps=1, size=(8,), images=256)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Writes a package's modules and puts them on the path, until the test is over."""
    for name in [*sys.modules]:
        if name.partition(".")[0] in FOREIGN:
            monkeypatch.delitem(sys.modules, name)

    def installed(package, modules):
        for name, text in modules.items():
            path = tmp_path.joinpath(package, *name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    before = set(sys.modules)
    yield installed
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in FOREIGN:
            del sys.modules[name]


@pytest.fixture
def install_studiogan(install, tmp_path):
    """The same for StudioGAN, which is no package: its settings lie beside its modules."""

    def installed(modules):
        settings = tmp_path / "configs" / "CIFAR10" / "SNGAN.yaml"
        settings.parent.mkdir(parents=True)
        settings.write_text("labels")
        install("", modules)

    return installed


@pytest.fixture
def rows(monkeypatch, composed):
    """What T7 gives for some peers, on games of ours that are tiny as well."""
    tiny = {name: replace(peer, model=OURS[name]) for name, peer in peers.PEERS.items()}
    monkeypatch.setattr(peers, "PEERS", tiny)

    def measured(*names):
        monkeypatch.setattr(steps, "PEERS", names)
        return [*steps.peers(SHORT, composed)]

    return measured


def test_peers_that_play_the_same_game_are_measured(install, install_studiogan, rows):
    install("torch_mimicry", MIMICRY)
    install("torchgan", TORCHGAN)
    install_studiogan(STUDIOGAN)
    found = {row["case"]: row for row in rows(*peers.PEERS)}
    for name, least in (("mimicry", "1.05"), ("torchgan", "1.1"), ("studiogan", "1")):
        row = found[f"peers {name}"]
        assert row.get("ratio", 0) > 0, row
        assert (row["id"], row["goal"], row["rounds"]) == ("T7", f"at least {least}", 2)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("-netD(fake)", "netD(fake)"),
        pytest.param("relu(1 + on_fake)", "relu(1 + 2 * on_fake)", marks=pytest.mark.slow),
    ],
)
def test_a_peer_that_plays_another_game_is_not_compared(install, rows, right, wrong):
    other = MIMICRY["nets.sngan"].replace(right, wrong)
    assert other != MIMICRY["nets.sngan"]
    install("torch_mimicry", {**MIMICRY, "nets.sngan": other})
    (row,) = rows("mimicry")
    assert "different games" in row.get("failed", ""), row
    assert "ratio" not in row


@pytest.mark.slow
def test_a_peer_that_does_not_tell_classes_apart_is_not_compared(install_studiogan, rows):
    other = STUDIOGAN["worker"].replace("self.Gen(torch.randn(many, 4), label)", BLIND)
    assert other != STUDIOGAN["worker"]
    install_studiogan({**STUDIOGAN, "worker": other})
    (row,) = rows("studiogan")
    assert "different games" in row.get("failed", ""), row


def test_a_peer_that_is_not_installed_is_skipped_with_the_way_to_it(monkeypatch, install, rows):
    monkeypatch.setitem(sys.modules, "torchgan", None)
    install("", {"config": "raise AssertionError"})  # somebody else's is not run
    torchgan, studiogan = (row["skipped"] for row in rows("torchgan", "studiogan"))
    assert "pip install --no-deps --target DIR torchgan" in torchgan
    assert "1.14" in torchgan
    assert "PyTorch-StudioGAN DIR, then PYTHONPATH=DIR/src" in studiogan
    assert "ratio" not in studiogan  # none is recorded


def test_absent_packages_have_stand_ins_only_while_a_peer_is_built(monkeypatch):
    monkeypatch.setattr(peers, "STAND_INS", {"nothing_like_this": 7, "torch": 7})
    with peers._standing_in():
        assert importlib.import_module("nothing_like_this.at.all").name == 7
        assert importlib.import_module("torch").Tensor is Tensor  # it is there
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("nor_this")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nothing_like_this")


@pytest.mark.usefixtures("two_cores")
def test_encoded_images_and_ffcv_are_measured(install, tmp_path):
    install("ffcv", FFCV)
    options = replace(SHORT, folder=tmp_path)
    (raw,) = data.ffcv(options)
    loader, encoded = data.jpeg(options)
    assert [row["id"] for row in (raw, loader, encoded)] == ["D3", "D6", "D6"]
    assert all(row["ratio"] and row["size"] == 8 for row in (raw, loader, encoded))
    assert raw["value"] < encoded["value"]  # nothing is decoded
    assert encoded["goal"] == "at least 0.7"


def test_without_ffcv_its_row_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    (row,) = data.ffcv(replace(SHORT, folder=tmp_path))
    assert "pip install ffcv" in row["skipped"]
