"""Reports on translations: distances by weights, intervals, LPIPS as torchmetrics computes it."""

import hashlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import squeezenet1_1

from gan.data.store import Store
from gan.data.triples import Glyphs
from gan.metrics import images
from gan.metrics.pairs import MEASURES, pair_report
from gan.metrics.scores import bootstrap
from gan.metrics.tables import signed
from gan.networks import lpips
from gan.networks.lpips import Lpips
from gan.recipes.pix2pix import Pix2Pix
from gan.trained import reports

CPU = torch.device("cpu")


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, image):
        return image + self.by


def report_of(**generators):
    """On pairs whose truth is 0.4 brighter than the input."""
    random = torch.Generator().manual_seed(0)
    given = torch.rand(80, 1, 8, 9, generator=random) * 0.5 - 0.5
    batch = {"input": given, "target": given + 0.4}
    modules = {name: Shift(by) for name, by in generators.items()}
    return pair_report(modules, lambda g, b: g(b["input"]), batch, MEASURES, {"note": 1}), batch


def test_every_weight_stands_beside_the_copy_and_the_last_counts():
    report, batch = report_of(raw=0.2, ema=0.3)
    assert report.numbers["l1"] == pytest.approx(0.05, rel=1e-4)  # of images in [0, 1]
    assert report.numbers["raw_weights/l1"] == pytest.approx(0.1, rel=1e-4)
    assert report.numbers["copy_of_the_input/l1"] == pytest.approx(0.2, rel=1e-4)
    truth, made = ((1 + batch["target"]) / 2, (1 + batch["input"] + 0.3) / 2)
    assert report.numbers["ssim"] == pytest.approx(float(images.ssim(made, truth).mean()), rel=1e-4)
    assert report.numbers["psnr"] == pytest.approx(-20 * np.log10(0.05), rel=1e-4)
    assert "ahead of the copy of its input on l1, psnr, ssim" in report.verdict
    assert report.facts["pairs"] == len(report.facts["values"]["ema weights"]["l1"]) == 80
    assert report.facts["note"] == 1


def test_what_is_no_better_than_a_copy_is_said_to_be_so():
    report, _ = report_of(raw=0.0)
    assert "not ahead of the copy of its input on anything" in report.verdict
    worse, _ = report_of(raw=-0.3)
    assert "not ahead" in worse.verdict


def test_one_pair_has_numbers_and_allows_no_claim():
    batch = {"input": torch.zeros(1, 1, 8, 9), "target": torch.full((1, 1, 8, 9), 0.4)}
    report = pair_report({"raw": Shift(0.4)}, lambda g, b: g(b["input"]), batch, MEASURES, {})
    assert report.verdict == "There is one held-out pair, which allows no claim."
    assert "  l1    -0.2000, of one pair: no interval" in report.text
    assert report.numbers["l1"] == pytest.approx(0, abs=1e-6)


def test_pairs_of_one_family_are_drawn_again_together():
    """They are alike, so that an interval over single pairs would be too narrow."""
    families = np.arange(40) % 4
    target = 0.4 * torch.tensor([1.0, 1.0, 1.0, -0.9])[families].view(-1, 1, 1, 1)
    batch = {"input": torch.zeros(40, 1, 8, 9), "target": target.expand(-1, 1, 8, 9)}
    given = ({"raw": Shift(0.2)}, lambda g, b: g(b["input"]), batch, MEASURES, {})
    report, single = pair_report(*given, families), pair_report(*given)
    values = report.facts["values"]
    gap = values["raw weights"]["l1"] - values["copy of the input"]["l1"]
    assert f"  l1    {signed(bootstrap(gap, families))}" in report.text
    assert "95 % intervals over 4 families of styles" in report.text
    assert "95 % intervals over images" in single.text
    assert "not ahead" in report.verdict
    assert "ahead of the copy of its input on l1" in single.verdict
    assert pair_report(*given, np.zeros(40)).text == single.text


def test_pairs_of_glyphs_are_told_by_the_families_of_their_styles(glyph_store, monkeypatch):
    monkeypatch.setattr(reports, "pair_report", lambda *given: given)
    loaded = {"raw": SimpleNamespace(recipe=Pix2Pix, generator=nn.Identity(), config={})}
    dataset = Glyphs(Store(glyph_store))
    *_, families = reports.report_of(loaded, dataset, CPU, reports.Options())
    styles = dataset.store.fields["style"][dataset.held_out("test").images["target"]]
    assert len({*styles.tolist()}) > 1
    assert families.tolist() == dataset.families[styles].tolist()


def test_an_input_that_is_its_target_leaves_psnr_finite():
    target = torch.rand(8, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    batch = {"input": target + 0.4 * (torch.arange(8) > 0).view(-1, 1, 1, 1), "target": target}
    report = pair_report({"raw": Shift(-0.4)}, lambda g, b: g(b["input"]), batch, MEASURES, {})
    assert report.numbers["copy_of_the_input/psnr"] == pytest.approx(
        (20 * np.log10(510) - 7 * 20 * np.log10(0.2)) / 8, rel=1e-4
    )
    assert not re.search(r"\b(nan|inf)\b", report.text)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of random weights that takes the place of torchvision's."""
    torch.manual_seed(0)
    network = squeezenet1_1(weights=None)
    path = tmp_path / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(lpips, "NETWORKS", {digest: lpips.NETWORKS["b8a52dc0"]})
    return path, network


def test_lpips_is_in_float32_where_a_run_plays_in_tf32(weights, precisions):
    distance = Lpips(weights[0], CPU)
    seen = precisions(distance.network, lambda: distance(*torch.rand(2, 2, 1, 40, 48)))
    assert seen == {("highest", False)}


def test_lpips_equals_torchmetrics(weights):
    path, network = weights
    library = _LPIPS(net="squeeze", pnet_rand=True)
    for part in library.net.slices:
        for name, module in part.named_children():
            module.load_state_dict(network.features[int(name)].state_dict())
    random = torch.Generator().manual_seed(1)
    image, truth = torch.rand(2, 3, 1, 40, 48, generator=random)
    found = Lpips(path, CPU)(image, truth)
    both = [x.expand(-1, 3, -1, -1) for x in (image, truth)]
    with torch.no_grad():
        expected = library(*both, normalize=True).flatten()
        unscaled = library(*both).flatten()  # images in [0, 1] taken as they are
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert (unscaled / expected - 1).abs().min() > 1e-2
    assert Lpips(path, CPU)(truth, truth).abs().max() == 0


def test_lpips_of_images_that_are_too_small_is_refused(weights):
    path, _ = weights
    with pytest.raises(ValueError, match="32 pixels or more, not 16"):
        Lpips(path, CPU)(*torch.rand(2, 1, 1, 16, 16))


def test_lpips_of_other_weights_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"some")
    with pytest.raises(ValueError, match="not 7be5be79 or 397923af or b8a52dc0"):
        Lpips(tmp_path / "weights.pth", CPU)
