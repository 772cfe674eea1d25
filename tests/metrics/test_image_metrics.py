import math

import numpy as np
import pytest
import torch
from synthetic_glyphs import write
from torch.nn.functional import conv2d
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from gan.metrics import images


@pytest.fixture(name="pair")
def _pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 2, 10, 9, generator=generator, dtype=torch.float64)


def glyphs(width):
    return 1 - torch.from_numpy(write(width, characters=6))[:, None].float() / 255


def blurred(image, sigma):
    taps = torch.exp(-(torch.arange(-8, 9.0) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    wide = conv2d(image, taps.view(1, 1, 1, -1), padding=(0, 8))
    return conv2d(wide, taps.view(1, 1, -1, 1), padding=(8, 0))


def test_differences_equal_explicit_loops(pair):
    for n, (x, y) in enumerate(zip(*pair.numpy(), strict=True)):
        pixels = list(zip(x.ravel(), y.ravel(), strict=True))
        absolute = sum(abs(a - b) for a, b in pixels) / len(pixels)
        squared = sum((a - b) ** 2 for a, b in pixels) / len(pixels)
        flipped = sum((a > 0.5) != (b > 0.5) for a, b in pixels) / len(pixels)
        assert images.l1(*pair)[n] == pytest.approx(absolute)
        assert images.l1_per_ink(*pair)[n] == pytest.approx(absolute / y.mean())
        assert images.rmse(*pair)[n] == pytest.approx(math.sqrt(squared))
        assert images.psnr(*pair)[n] == pytest.approx(10 * math.log10(1 / squared))
        assert images.pdar(*pair)[n] == pytest.approx(flipped)


def test_psnr_of_equal_images_is_that_of_half_a_step_of_a_byte():
    same = torch.rand(2, 3, 8, 9)
    nearly = same + 1 / 510
    assert images.psnr(same, same).tolist() == pytest.approx(
        images.psnr(nearly, same).tolist(), rel=1e-5
    )
    assert images.psnr(same, same)[0] == pytest.approx(20 * math.log10(510))
    assert images.psnr(same + 1 / 400, same)[0] == pytest.approx(20 * math.log10(400), rel=1e-4)


def test_psnr_equals_torchmetrics(pair):
    expected = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(images.psnr(*pair), expected)


def test_ssim_equals_an_explicit_loop_over_windows(pair):
    x, y = pair.numpy()
    values = []
    for channel in range(2):
        for top in range(10 - 6):
            for left in range(9 - 6):
                a = x[0, channel, top : top + 7, left : left + 7].ravel()
                b = y[0, channel, top : top + 7, left : left + 7].ravel()
                (var_a, both), (_, var_b) = np.cov(a, b)  # divides by 48
                means = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
                values.append(means * (2 * both + 9e-4) / (var_a + var_b + 9e-4))
    assert images.ssim(*pair)[0] == pytest.approx(np.mean(values))


def test_ssim_equals_torchmetrics_inside_the_borders_once_k2_stands_for_the_divisor(pair):
    def theirs(k2):
        options = {"gaussian_kernel": False, "kernel_size": 7, "data_range": 1.0, "k2": k2}
        _, windows = structural_similarity_index_measure(*pair, **options, return_full_image=True)
        return windows[..., 3:-3, 3:-3].mean((1, 2, 3))

    ours = images.ssim(*pair)
    torch.testing.assert_close(ours, theirs(0.03 * math.sqrt(48 / 49)))
    assert not torch.allclose(ours, theirs(0.03))


def test_ssim_of_equal_images_is_one(pair):
    torch.testing.assert_close(images.ssim(pair[0], pair[0]), torch.ones(3, dtype=torch.float64))


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="window=7 does not fit into images of 6x9"):
        images.ssim(torch.zeros(1, 1, 6, 9), torch.zeros(1, 1, 6, 9))


def test_blank_page_loses_all_ink_and_all_sharpness():
    truth = glyphs(2.0)
    blank = torch.zeros_like(truth)
    torch.testing.assert_close(images.l1_per_ink(blank, truth), torch.ones(6))
    assert images.sharpness(blank, truth).tolist() == [0] * 6


@pytest.mark.parametrize("width", [0.7, 1.5, 4.0])
def test_sharpness_is_one_for_the_truth_and_falls_with_blur(width):
    truth = glyphs(width)
    values = torch.stack([images.sharpness(blurred(truth, s), truth) for s in (0.4, 0.8, 1.6, 3.0)])
    assert images.sharpness(truth, truth).tolist() == [1] * 6
    assert (values[0] < 1).all()
    assert (values[1:].mean(1) < 0.75).all()


def test_counting_greys_alone_would_call_washed_out_strokes_sharp():
    truth = glyphs(0.7)
    faint = blurred(truth, 3.0)
    greys = [((x > 0.2) & (x < 0.8)).sum() for x in (truth, faint)]
    assert greys[1] < greys[0]
    assert (images.sharpness(faint, truth) < 0.5).all()


def test_sharpness_of_black_and_white_is_bounded_and_ignores_place():
    truth = glyphs(2.0)
    crisp = (truth > 0.5).float()
    assert (images.sharpness(crisp, truth) >= 1).all()
    assert (images.sharpness(crisp, truth) < 2).all()
    torch.testing.assert_close(images.sharpness(truth.flip(-1), truth), torch.ones(6))
