"""Tensor and image: one pair of functions, and what goes wrong without it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gan
from gan.images import to_bytes, to_floats

BYTES = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3]))
def test_bytes_survive_the_round_trip_in_any_shape(leading, height, width, channels):
    shape = (*range(2, 2 + leading), height, width, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    floats = to_floats(pixels)
    assert floats.shape == (*shape[:-3], channels, height, width)
    assert np.array_equal(to_bytes(floats), pixels)


def test_every_byte_has_its_float_and_the_ends_are_exact():
    floats = to_floats(BYTES).flatten()
    assert floats.dtype == torch.float32
    assert (floats[0], floats[-1]) == (-1, 1)
    assert torch.allclose(floats, torch.linspace(-1, 1, 256), atol=1e-6)
    assert np.array_equal(to_bytes(to_floats(BYTES)), BYTES)


def test_floats_between_are_rounded_and_those_outside_are_clipped():
    step = 2 / 255
    values = torch.tensor([-9.0, -1 + 0.4 * step, -1 + 0.6 * step, 0.0, 1 - 0.4 * step, 7.0])
    found = to_bytes(values.view(1, 1, 2, 3)).flatten().tolist()
    assert found == [0, 0, 1, 128, 255, 255]  # a cast alone would cut off, and wrap around at 256


def test_colours_go_from_the_last_place_to_the_first_and_back():
    red = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    red[..., 0] = 255
    floats = to_floats(red)
    assert (floats[:, 0] == 1).all()
    assert (floats[:, 1:] == -1).all()
    assert np.array_equal(to_bytes(floats), red)


# -- memory: `torch.from_numpy` alone would share it


def test_floats_share_no_memory_with_the_array_and_bytes_none_with_the_tensor():
    pixels = BYTES.copy()
    floats = to_floats(pixels)
    pixels[:] = 7
    assert torch.equal(floats, to_floats(BYTES))
    drawn = to_bytes(floats)
    floats.zero_()
    assert np.array_equal(drawn, BYTES)
    drawn[:] = 3  # writable, and nobody else's


def test_bytes_of_a_tensor_are_left_alone():
    pixels = torch.from_numpy(BYTES.copy())
    to_floats(pixels).add_(1)
    assert np.array_equal(pixels.numpy(), BYTES)


def test_arrays_that_torch_refuses_are_taken():
    mirrored = BYTES[:, :, ::-1]  # strides below zero
    with pytest.raises(ValueError, match="negative strides"):
        torch.from_numpy(mirrored)
    assert torch.equal(to_floats(mirrored), to_floats(BYTES).flip(-1))


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_is_taken_and_stays_as_it_is():
    frozen = BYTES.copy()
    frozen.flags.writeable = False  # as the views of a store are
    to_floats(frozen).add_(1)
    assert np.array_equal(frozen, BYTES)


# -- gradients, types, devices: `.numpy()` alone would refuse them


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_of_a_network_are_taken_whatever_their_type_and_graph(dtype):
    weight = torch.ones(1, dtype=dtype, requires_grad=True)
    made = weight * torch.tensor([[[[-1.0, 0.0, 1.0]]]], dtype=dtype)
    with pytest.raises((RuntimeError, TypeError)):
        made.numpy()
    assert to_bytes(made).flatten().tolist() == [0, 128, 255]
    made.sum().backward()  # the graph is still there
    assert weight.grad is not None


def test_floats_need_no_gradient_and_can_be_given_one():
    floats = to_floats(BYTES)
    assert not floats.requires_grad
    assert floats.requires_grad_().is_leaf


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_the_order_in_memory_does_not_matter(order):
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    floats = to_floats(pixels).contiguous(memory_format=order)
    assert np.array_equal(to_bytes(floats), pixels)


def test_floats_lie_channels_last():
    assert to_floats(np.zeros((2, 4, 5, 3), np.uint8)).is_contiguous(
        memory_format=torch.channels_last
    )


def test_the_device_is_the_one_asked_for_and_else_that_of_the_bytes():
    assert to_floats(BYTES, "meta").device.type == "meta"
    assert to_floats(torch.from_numpy(BYTES)).device.type == "cpu"
    there = torch.empty(2, 4, 4, 3, dtype=torch.uint8, device="meta")
    assert to_floats(there).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_on_the_device_come_back_as_arrays():
    floats = to_floats(BYTES, "cuda").requires_grad_()
    with pytest.raises(TypeError, match="device type tensor"):
        floats.detach().numpy()
    assert np.array_equal(to_bytes(floats), BYTES)


# -- mistakes


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16])
def test_pixels_that_are_no_bytes_are_refused(dtype):
    with pytest.raises(ValueError, match=f"pixels must be bytes.*{np.dtype(dtype)}"):
        to_floats(np.zeros((1, 2, 2, 1), dtype))


def test_integers_are_no_images():
    with pytest.raises(ValueError, match=r"images must be floats in \[-1, 1\], not torch.uint8"):
        to_bytes(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_the_pair_is_public():
    assert (gan.to_bytes, gan.to_floats) == (to_bytes, to_floats)
