"""Reconstruction losses: values, where gradients go, and where the maps come from."""

import pytest
import torch
from torch import nn
from torchvision.models import squeezenet1_1

from gan.losses.reconstruction import Perceptual, feature_distance
from gan.networks.pretrained import TorchvisionClassifier, _before_pooling
from gan.registry import create
from gan.step.gradients import frozen

LAYERS = ["features.0", "features.3.expand3x3"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The state dict of an untrained torchvision network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1().state_dict(), path)
    return str(path)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    image, target = (torch.rand(2, 3, 33, 34, generator=generator) * 2 - 1 for _ in range(2))
    return image.requires_grad_(), target.requires_grad_()


class Judge(nn.Module):
    """A discriminator with two maps and statistics that training would change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))

    def features(self, image):
        map = self.first(image)
        return [map, self.second(map)]


@pytest.mark.parametrize("shape", [(1, 1, 6, 7), (3, 3, 6, 7)])
def test_a_constant_offset_costs_its_size_or_its_square(shape):
    target = torch.randn(shape, dtype=torch.float64)
    for offset in (-0.3, 0.5):
        l1 = create("reconstruction", "l1", weight=7)(target + offset, target)
        l2 = create("reconstruction", "l2", weight=7)(target + offset, target)
        assert l1.item() == pytest.approx(7 * abs(offset))
        assert l2.item() == pytest.approx(7 * offset**2)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_pixel_losses_reach_the_image_and_not_the_target(name, pair):
    image, target = pair
    create("reconstruction", name)(image, target).backward()
    assert (image.grad != 0).all()
    assert target.grad is None


def test_images_of_another_shape_are_refused(pair):
    image, _ = pair
    with pytest.raises(ValueError, match=r"shape of its target \[2, 1, 33, 34\]"):
        create("reconstruction", "l1")(image, image[:, :1])


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_perceptual_is_the_weighted_sum_over_layers(criterion, weights, pair):
    loss = create(
        "reconstruction", "perceptual", network="squeezenet1_1", weights=weights, layers=LAYERS,
        layer_weights=[0.5, 2.0], weight=3.0, criterion=criterion,
    )  # fmt: skip
    reference = squeezenet1_1().eval()
    reference.load_state_dict(torch.load(weights, weights_only=True))
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    difference = []
    for image in pair:
        x = ((image + 1) / 2 - mean) / deviation
        first = reference.features[0](x)
        x = reference.features[2](first.relu())
        difference.append((first, reference.features[3].expand3x3(
            reference.features[3].squeeze(x).relu()
        )))  # fmt: skip
    power = {"l1": 1, "l2": 2}[criterion]
    maps = zip(*difference, strict=True)
    first, second = ((a - b).abs().pow(power).mean() for a, b in maps)
    torch.testing.assert_close(loss(*pair), 3 * (0.5 * first + 2 * second), rtol=1e-4, atol=1e-5)


def test_maps_come_in_the_order_of_the_layers_and_with_their_weights(weights, pair):
    """Not in that of the network, which weights by place would then miss."""
    layers = ["features.3.cat", "features.0", "features.3", "features.0"]
    network = TorchvisionClassifier("squeezenet1_1", layers, weights)
    late, early, same, again = network.features(pair[0])
    alone = TorchvisionClassifier("squeezenet1_1", ["features.3.cat"], weights)
    torch.testing.assert_close(late, alone.features(pair[0])[0])
    assert late.shape[1] == 128 > early.shape[1]
    assert torch.equal(late, same)
    assert torch.equal(early, again)
    losses = [
        Perceptual("squeezenet1_1", layers=order, layer_weights=shares, weights=weights)(*pair)
        for order, shares in ((LAYERS, [0.1, 9.0]), (LAYERS[::-1], [9.0, 0.1]))
    ]
    torch.testing.assert_close(*losses)


def test_perceptual_is_frozen_and_still_passes_gradients_to_the_image(weights, pair):
    """Under `no_grad`, the known wrong variant, there is nothing to follow back."""
    loss = Perceptual("squeezenet1_1", weights=weights, layers=LAYERS)
    before = {name: t.clone() for name, t in loss.network.state_dict().items()}
    image, target = pair
    assert loss(image, image).item() == 0
    loss(image, target).backward()
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()
    assert target.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss.network.parameters())
    loss.network.train()
    assert not any(module.training for module in loss.network.modules())
    loss(image, target)
    assert all(torch.equal(before[name], t) for name, t in loss.network.state_dict().items())
    with torch.no_grad():
        assert not loss(image, target).requires_grad


def test_maps_are_those_before_an_activation_in_place(weights, pair):
    """The ReLU behind a layer must not overwrite the layer's map."""
    network = TorchvisionClassifier("squeezenet1_1", LAYERS, weights)
    maps = network.features(pair[0])
    assert all((map < 0).any() for map in maps)
    assert squeezenet1_1().features[1].inplace  # torchvision's own setting


def test_grey_images_are_seen_as_colour_images(weights):
    network = TorchvisionClassifier("squeezenet1_1", LAYERS, weights)
    grey = torch.rand(2, 1, 33, 33) * 2 - 1
    pairs = zip(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)), strict=True)
    for one, three in pairs:
        torch.testing.assert_close(one, three)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        network.features(torch.zeros(1, 4, 33, 33))


def test_building_a_torchvision_network_leaves_the_random_state_alone(weights):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    TorchvisionClassifier("squeezenet1_1", LAYERS, weights)
    assert torch.equal(torch.rand(2), expected)


def test_vgg_is_seen_at_the_last_convolution_of_each_block_by_default():
    from torchvision.models import resnet18, vgg16

    with torch.device("meta"):
        vgg, resnet = vgg16(), resnet18()
    places = [f"features.{n}" for n in (2, 7, 14, 21, 28)]  # conv1_2, 2_2, 3_3, 4_3, 5_3
    assert _before_pooling("vgg16", vgg) == places
    with pytest.raises(ValueError, match="layers must be given for network=resnet18"):
        _before_pooling("resnet18", resnet)


def test_nothing_is_downloaded_unless_that_is_asked_for(weights, monkeypatch):
    def fetched(*_, **__):
        raise ConnectionError("torchvision was asked")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    with pytest.raises(ValueError, match="give weights=FILE .* or download=true"):
        Perceptual("squeezenet1_1", layers=LAYERS)
    with pytest.raises(ValueError, match="from one place"):
        Perceptual("squeezenet1_1", layers=LAYERS, weights=weights, download=True)
    Perceptual("squeezenet1_1", layers=LAYERS, weights=weights)
    with pytest.raises(ConnectionError):
        Perceptual("squeezenet1_1", layers=LAYERS, download=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "squeezenet1_2"}, "no network 'squeezenet1_2'.* did you mean 'squeezenet1_1'"),
        ({"network": "resnet18"}, r"weights=.* do not fit network=resnet18: \d+ tensors"),
        ({"layers": ["features.99"]}, "network=squeezenet1_1 has no 'features.99'; did you mean"),
        ({"layers": [0]}, "layers must be names such as features.2 for network=squeezenet1_1"),
        ({"network": "data/gone"}, "there is no folder data/gone: name one that `gan classifier`"),
        ({"weights": "nowhere.pth"}, "weights=nowhere.pth cannot be read: .*No such file"),
        ({"network": "discriminator"}, "layers must be places such as 0"),
        ({"network": "discriminator", "layers": [0]}, "are for torchvision's networks"),
    ],
)
def test_what_does_not_fit_is_named(weights, settings, message):
    common = {"network": "squeezenet1_1", "layers": LAYERS, "weights": weights}
    with pytest.raises(ValueError, match=message):
        create("reconstruction", "perceptual", **{**common, **settings})


def test_a_file_that_holds_code_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (pytest.fail, ("the file was run",))

    torch.save(Harm(), tmp_path / "harm.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        Perceptual("squeezenet1_1", layers=LAYERS, weights=str(tmp_path / "harm.pth"))


def test_paired_feature_matching_compares_each_fake_with_its_own_real(pair):
    judge, loss = Judge().eval(), Perceptual("discriminator", weight=10.0)
    fake, real = pair
    maps = zip(judge.features(fake), judge.features(real), strict=True)
    expected = 10 * sum((a - b).abs().mean() for a, b in maps)
    torch.testing.assert_close(loss(fake, real, judge.features), expected)
    assert not torch.isclose(loss(fake, real.flip(0), judge.features), expected)


def test_feature_matching_of_moments_ignores_the_order(pair):
    judge, loss = Judge().eval(), Perceptual("discriminator", criterion="moments", layers=[1])
    fake, real = pair
    h, k = judge.features(fake)[1], judge.features(real)[1]
    expected = (h.mean(0) - k.mean(0)).square().sum()
    torch.testing.assert_close(loss(fake, real, judge.features), expected)
    torch.testing.assert_close(loss(fake, real.flip(0), judge.features), expected)


@pytest.mark.parametrize("criterion", ["l1", "moments", "rms"])
def test_feature_matching_trains_the_image_alone(pair, criterion):
    judge, loss = Judge(), Perceptual("discriminator", criterion=criterion)
    fake, real = pair
    with frozen(list(judge.parameters())):  # as the generator's turn does
        loss(fake, real, judge.features).backward()
    assert (fake.grad.flatten(1).norm(dim=1) > 0).all()
    assert real.grad is None
    assert all(p.grad is None for p in judge.parameters())


def test_places_and_weights_must_fit_the_maps(pair):
    judge = Judge()
    with pytest.raises(ValueError, match=r"layers=\[2\] must be places from 0 to 1"):
        Perceptual("discriminator", layers=[2])(*pair, judge.features)
    with pytest.raises(ValueError, match="each of the 2 maps, not 1"):
        Perceptual("discriminator", layer_weights=[1.0])(*pair, judge.features)
    with pytest.raises(ValueError, match="needs the discriminator's features"):
        Perceptual("discriminator")(*pair)


def test_root_mean_square_over_equal_layers_is_the_feature_distance(pair):
    judge = Judge().eval()
    loss = Perceptual("discriminator", criterion="rms", layer_weights=[0.5, 0.5])
    expected = feature_distance(judge.features, *pair)
    torch.testing.assert_close(loss(*pair, judge.features), expected)
    assert loss(pair[0], pair[0], judge.features).item() == pytest.approx(1e-9**0.5, rel=1e-3)
