"""What is computed in bf16: where there are units for it, and never a difference of logits."""

import pytest
import torch
from torch import nn

from gan.config.settings import Settings, multiplies_bf16
from gan.networks.blocks import in_full
from gan.registry import create

BOTH = {"size": 16, "channels": 1, "width": 4}


@pytest.mark.parametrize("name", ["dcgan", "resnet", "resnext", "mlp", "patch", "wnet"])
def test_logits_are_judged_in_full_precision(name):
    torch.manual_seed(0)
    given = {
        "patch": {"images": 1, "layers": 1},
        "wnet": {"styles": 3},
    }.get(name, {"classes": 0})
    network = create("discriminator", name, **BOTH, **given)
    images = [torch.randn(3, 1, 16, 16) for _ in range(3 if name == "wnet" else 1)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = network(*images)
    for logits in said if isinstance(said, tuple) else [said]:
        assert logits.dtype == torch.float32
        assert (logits != logits.bfloat16().float()).any()  # more than bf16's digits


def test_classes_of_glyphs_are_named_in_full_precision():
    torch.manual_seed(0)
    network = create("generator", "wnet", **BOTH, styles=3, characters=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = [
            encode(torch.randn(3, 1, 16, 16))
            for encode in (network.encode_content, network.encode_style)
        ]
    for code in codes:
        assert code.logits.dtype == torch.float32
        assert (code.logits != code.logits.bfloat16().float()).any()


def test_a_difference_of_large_logits_is_not_lost():
    head = nn.Linear(8, 1)
    nn.init.constant_(head.bias, 1000.0)
    real, fake = torch.randn(2, 64, 8).unbind()
    true = (head(fake).mean() - head(real).mean()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = in_full(head, fake).mean() - in_full(head, real).mean()
        lost = head(fake).mean() - head(real).mean()
    assert kept.item() == pytest.approx(true, abs=1e-3)
    assert abs(lost.item() - true) > 0.05


def test_doubles_stay_doubles():
    head = nn.Linear(8, 1).double()
    assert in_full(head, torch.randn(2, 8).double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert in_full(head, torch.randn(2, 8).double()).dtype == torch.float64


@pytest.fixture
def hardware(monkeypatch):
    """Devices with these units and no others."""

    def build(ampere=False, amx=False):
        def supported(including_emulation=True):
            return ampere or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": amx}
        )
        multiplies_bf16.cache_clear()

    yield build
    multiplies_bf16.cache_clear()


@pytest.mark.parametrize("there", [False, True])
def test_only_devices_with_matrix_units_for_bf16_choose_it_by_themselves(hardware, there):
    hardware(ampere=there, amx=not there)
    assert multiplies_bf16(torch.device("cuda", 0)) is there
    assert multiplies_bf16(torch.device("cpu")) is not there
    assert not multiplies_bf16(torch.device("meta"))
    hardware(amx=there)
    kinds = {"auto": there, "fp32": False, "bf16": True}
    for precision, half in kinds.items():
        with Settings(precision=precision).autocast(torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if half else torch.float32)


def test_versions_that_do_not_tell_what_a_cpu_can_do_compute_in_full(hardware, monkeypatch):
    hardware(amx=True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not multiplies_bf16(torch.device("cpu"))
