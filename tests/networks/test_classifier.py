"""The small classifier: heads, features and behaviour when frozen."""

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gan.networks.classifier import Classifier

FIELDS = {"style": 3, "character": 5}


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3), (50, 1)])
def test_one_logit_per_class_and_field_at_any_size(size, channels):
    logits = Classifier(channels, FIELDS, width=4)(torch.randn(2, channels, size, size))
    assert {name: value.shape for name, value in logits.items()} == {
        "style": (2, 3),
        "character": (2, 5),
    }


def test_a_field_may_have_any_name():
    classes = {"type": 2, "half": 3, "hair.colour": 4}
    logits = Classifier(1, classes, width=4)(torch.randn(2, 1, 16, 16))
    assert {name: value.shape[1] for name, value in logits.items()} == classes


def test_features_are_four_maps_each_half_the_last():
    maps = Classifier(1, FIELDS, width=4).features(torch.randn(2, 1, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_features_are_normalised_and_not_yet_rectified():
    for map in Classifier(1, FIELDS, width=4).features(torch.randn(16, 1, 32, 32)):
        assert torch.allclose(map.mean((0, 2, 3)), torch.zeros(map.shape[1]), atol=1e-4)
        assert torch.allclose(map.var((0, 2, 3), correction=0), torch.ones(map.shape[1]), atol=1e-2)


def test_embedding_is_what_the_heads_read():
    network, image = Classifier(1, FIELDS, width=4).eval(), torch.randn(2, 1, 32, 32)
    code = network.embed(image)
    assert torch.allclose(code, network.features(image)[-1].clamp(min=0).mean((2, 3)))
    assert torch.equal(network(image)["style"], network.heads[1](code))


def test_frozen_features_change_nothing_and_pass_gradients_to_the_image():
    network = Classifier(1, FIELDS, width=4).eval().requires_grad_(False)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    image = torch.randn(2, 1, 32, 32, requires_grad=True)
    sum(map.square().mean() for map in network.features(image)).backward()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


def test_eval_logits_depend_on_their_own_sample_alone():
    network, image = Classifier(1, FIELDS, width=4).eval(), torch.randn(3, 1, 16, 16)
    assert torch.allclose(network(image)["style"][:1], network(image[:1])["style"], atol=1e-6)


def test_default_costs_at_most_ten_million_multiplications_at_32_pixels():
    with torch.device("meta"):
        network = Classifier(1, {"style": 22, "character": 179}).eval()
        image = torch.zeros(1, 1, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() / 2 <= 10e6


def test_two_fields_are_learned_at_once():
    torch.manual_seed(0)
    network = Classifier(1, {"row": 2, "column": 2}, width=8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    row, column = torch.arange(16) % 2, torch.arange(16) // 2 % 2
    image = torch.rand(16, 1, 16, 16)
    image[row == 1, :, ::2] -= 1
    image[column == 1, :, :, ::2] -= 1
    for _ in range(50):
        optimizer.zero_grad()
        logits = network(image)
        (
            functional.cross_entropy(logits["row"], row)
            + functional.cross_entropy(logits["column"], column)
        ).backward()
        optimizer.step()
    logits = network.eval()(image)
    assert torch.equal(logits["row"].argmax(1), row)
    assert torch.equal(logits["column"].argmax(1), column)
