"""W-Net against Figure 2 and the parameter and multiplication counts that follow from it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from gan.bench.by_hand import as_written
from gan.networks.resample import StridedConv2d
from gan.networks.wnet import Code, Discriminator, Generator
from gan.orientations import ORIENTATIONS, oriented, upright

COUNTS = {  # width, size: generator's millions of parameters and 1e9 multiplications per image
    (64, 32): ("50.9", "0.470"),
    (64, 64): ("93.1", "1.955"),
    (64, 128): ("163.3", "7.66"),
    (32, 32): ("12.7", "0.118"),
    (32, 64): ("23.3", "0.490"),
    (32, 128): ("40.8", "1.92"),
    (16, 32): ("3.2", "0.030"),
    (16, 64): ("5.8", "0.123"),
    (16, 128): ("10.2", "0.48"),
}
CRITIC_COUNTS = {
    64: ("17.5", "0.068"),
    32: ("4.4", "0.018"),
    16: ("1.1", "0.005"),
}  # 64 pixels, S = 32


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def rounded(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


def conv(before: int, after: int, kernel: int) -> int:
    return kernel**2 * before * after + after


def formula(width: int, size: int, blocks: int = 5) -> int:
    """Parameters of the generator without its heads, summed level by level from Figure 2."""
    count = int(math.log2(size))
    inner = [width * min(2**i, 8) for i in range(count)]
    sizes = [size // 2 ** (i + 1) for i in range(count)]
    encoder = conv(1, inner[0], 5) + sum(conv(a, b, 5) + 2 * b for a, b in pairwise(inner))
    total, before = 2 * encoder, 2 * inner[-1]
    for width, side in list(zip(inner, sizes, strict=True))[-2::-1]:
        sources = 2 if side <= 8 else 1
        depth = max(0, blocks - 2 * int(math.log2(side / 8))) if side >= 8 else 0
        total += conv(before, width, 5) + 2 * width
        total += sources * depth * (2 * conv(width, width, 3) + 4 * width)
        before = (1 + sources) * width
    return total + conv(before, 1, 5)


def multiplications(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        network.eval()(*inputs)
    ours = counter.get_total_flops()
    as_written(network)
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    assert counter.get_total_flops() > ours  # the paper's, of which some are with zeros
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("width", "size"),
    [pytest.param(*c, marks=() if c in ((16, 32), (32, 64)) else pytest.mark.slow) for c in COUNTS],
)
def test_generator_counts_equal_the_formula_and_the_table(width, size):
    with torch.device("meta"):
        network = Generator(size, 1, styles=7, characters=9, width=width)
        image = torch.zeros(1, 1, size, size)
    heads = parameters(network.content_encoder.head) + parameters(network.style_encoder.head)
    assert heads == (7 + 9) * (8 * width + 1)
    assert parameters(network) - heads == formula(width, size)
    millions, billions = COUNTS[width, size]
    assert rounded(formula(width, size) / 1e6, millions) == millions
    assert rounded(multiplications(network, image, image), billions) == billions


@pytest.mark.parametrize("width", CRITIC_COUNTS)
def test_discriminator_counts_equal_the_table(width):
    with torch.device("meta"):
        network = Discriminator(64, 1, styles=32, width=width // 2)
        image = torch.zeros(1, 1, 64, 64)
    millions, billions = CRITIC_COUNTS[width]
    assert rounded(parameters(network) / 1e6, millions) == millions
    assert rounded(multiplications(network, image, image, image), billions) == billions


def test_residual_blocks_and_decoder_take_their_share_at_64_pixels():
    with torch.device("meta"):
        network = Generator(64, 1, styles=1, characters=1, width=64)
    refine = sum(parameters(level.refine) for level in network.decoder.levels)
    assert [rounded(n / 1e6, "1.23") for n in (refine, parameters(network.decoder) - refine)] == [
        "12.77",
        "45.47",
    ]
    depths = [[len(stack) for stack in level.refine] for level in network.decoder.levels]
    assert depths == [[0, 0], [0, 0], [5, 5], [3], [1]]  # 2, 4, 8, 16 and 32 pixels


@pytest.mark.parametrize("build", [Generator, Discriminator])
@pytest.mark.parametrize("size", [4, 24, 48])
def test_other_sizes_are_refused(build, size):
    facts = {"styles": 2} | ({"characters": 2} if build is Generator else {})
    with pytest.raises(ValueError, match=f"image.size.*power of two.*{size}"):
        build(size, 1, **facts)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(32, 1, styles=3, characters=4, width=2, blocks=3).eval()


def test_submodules_are_named_after_their_roles(generator):
    assert [name for name, _ in generator.named_children()] == [
        "content_encoder",
        "style_encoder",
        "decoder",
    ]


def test_codes_have_one_logit_per_training_class(generator):
    image = torch.randn(2, 1, 32, 32)
    content, style = generator.encode_content(image), generator.encode_style(image)
    assert content.code.shape == style.code.shape == (2, 16)
    assert content.logits.shape == (2, 4)
    assert style.logits.shape == (2, 3)
    assert [m.shape[-1] for m in content.shortcuts] == [2, 4, 8, 16]


def test_style_enters_at_eight_pixels_and_below_only(generator):
    image = torch.randn(2, 1, 32, 32)
    content, style = (
        generator.encode_content(image),
        generator.encode_style(torch.randn_like(image)),
    )
    fake = generator.decode(content, style)
    for level, pixels in enumerate([2, 4, 8, 16]):
        changed = [s + 1 if i == level else s for i, s in enumerate(style.shortcuts)]
        same = torch.equal(
            generator.decode(content, style._replace(shortcuts=tuple(changed))), fake
        )
        assert same == (pixels > 8)
        changed = [s + 1 if i == level else s for i, s in enumerate(content.shortcuts)]
        assert not torch.equal(
            generator.decode(content._replace(shortcuts=tuple(changed)), style), fake
        )
    assert not torch.equal(generator.decode(content, style._replace(code=style.code + 1)), fake)


def test_references_are_averaged(generator):
    references = torch.randn(2, 3, 1, 32, 32)
    together = generator.encode_style(references)
    single = [generator.encode_style(references[:, k]) for k in range(3)]
    mean = Code(
        *(torch.stack([getattr(c, f) for c in single]).mean(0) for f in ("code", "logits")), ()
    )
    assert torch.allclose(together.code, mean.code, atol=1e-6)
    assert torch.allclose(together.logits, mean.logits, atol=1e-6)
    for level, shortcut in enumerate(together.shortcuts):
        expected = torch.stack([c.shortcuts[level] for c in single]).mean(0)
        assert torch.allclose(shortcut, expected, atol=1e-5)
    prototype = torch.randn(2, 1, 32, 32)
    one = generator(prototype, references[:, :1])
    assert torch.allclose(one, generator(prototype, references[:, 0]), atol=1e-6)
    assert not torch.allclose(one, generator(prototype, references), atol=1e-6)


def test_decoder_drops_out_while_training_only():
    network = Generator(8, 1, styles=2, characters=2, width=2)
    image = torch.randn(2, 1, 8, 8)
    content, style = network.encode_content(image), network.encode_style(image)
    network.decoder.train()
    assert not torch.equal(network.decode(content, style), network.decode(content, style))
    network.decoder.eval()
    assert torch.equal(network.decode(content, style), network.decode(content, style))


@pytest.fixture
def ensemble(generator) -> Generator:
    """A generator that draws in all orientations."""
    generator.self_ensemble = True
    return generator


def test_the_self_ensemble_is_the_median_of_what_eight_orientations_give(ensemble):
    prototype, references = torch.randn(3, 1, 32, 32), torch.randn(3, 2, 1, 32, 32)
    found = ensemble(prototype, references)
    ensemble.self_ensemble = False
    drawn = [
        upright(ensemble(oriented(prototype, way), oriented(references, way)), way)
        for way in range(ORIENTATIONS)
    ]
    single = drawn[0]
    expected = torch.stack(drawn).quantile(0.5, dim=0)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (single - expected).abs().max() > 100 * (found - expected).abs().max()
    assert torch.equal(ensemble(prototype, references), single)


@pytest.mark.parametrize("way", range(1, ORIENTATIONS))
def test_the_self_ensemble_draws_alike_in_every_orientation(ensemble, way):
    """A closed form of the whole: turning what it is shown turns what it draws."""
    prototype, reference = torch.randn(2, 2, 1, 32, 32)
    plain = ensemble(prototype, reference)
    shown = ensemble(oriented(prototype, way), oriented(reference, way))
    assert torch.allclose(upright(shown, way), plain, atol=1e-6)
    assert not torch.allclose(shown, plain, atol=1e-3)  # as it would be if nothing were turned back
    ensemble.self_ensemble = False
    one = upright(ensemble(oriented(prototype, way), oriented(reference, way)), way)
    assert not torch.allclose(one, ensemble(prototype, reference), atol=1e-3)


def test_the_self_ensemble_hides_nothing_that_is_no_number(ensemble):
    """NaN of one orientation shows, where a median of the rest would not."""
    plain = ensemble.decoder
    drawn = []

    class Once(torch.nn.Module):
        def forward(self, *codes):
            drawn.append(plain(*codes))
            return drawn[-1] if len(drawn) > 1 else drawn[-1] * float("nan")

    ensemble.decoder = Once()
    image = torch.randn(2, 1, 32, 32)
    assert ensemble(image, image).isnan().all()
    assert len(drawn) == ORIENTATIONS


def test_the_self_ensemble_leaves_training_and_weights_alone(ensemble):
    plain = Generator(32, 1, styles=3, characters=4, width=2, blocks=3)
    plain.load_state_dict(ensemble.state_dict())
    image = torch.randn(4, 1, 32, 32)
    ensemble.train()
    assert torch.equal(ensemble.encode_style(image).code, plain.encode_style(image).code)
    torch.manual_seed(1)
    drawn = ensemble(image, image)
    torch.manual_seed(1)
    assert torch.equal(drawn, plain(image, image))


@pytest.mark.parametrize("references", [(1, 1, 8, 8), (1, 4, 1, 8, 8)])
def test_one_image_cannot_train(references):
    network = Generator(8, 1, styles=2, characters=2, width=2)
    with pytest.raises(ValueError, match="trainer.batch_size.*at least 2"):
        network(torch.randn(1, 1, 8, 8), torch.randn(references))
    assert network.eval()(torch.randn(1, 1, 8, 8), torch.randn(references)).shape == (1, 1, 8, 8)


def test_image_is_bounded_for_extreme_inputs(generator):
    for network in (generator.eval(), generator.train()):
        image = network(1e3 * torch.randn(3, 1, 32, 32), 1e3 * torch.randn(3, 1, 32, 32))
        assert image.abs().max() <= 1
        assert image.min() < 0 < image.max()


@pytest.mark.parametrize("target", [-0.7, 0.7])
def test_both_signs_can_be_learned(target):
    torch.manual_seed(0)
    network = Generator(8, 1, styles=2, characters=2, width=4, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    image = torch.randn(4, 1, 8, 8)
    for _ in range(15):
        optimizer.zero_grad()
        fake = network(image, image)
        (fake - target).abs().mean().backward()
        optimizer.step()
    assert (fake * target > 0).float().mean() > 0.95


def test_heads_return_logits():
    network = Generator(8, 1, styles=10, characters=10, width=2).eval()
    critic = Discriminator(8, 1, styles=10, width=2)
    for head in (network.content_encoder.head, network.style_encoder.head, critic.style):
        nn.init.zeros_(head.weight)
        head.bias.data = 20 * functional.one_hot(torch.tensor(3), 10).float()
    image, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 3])
    all_logits = (
        network.encode_content(image).logits,
        network.encode_style(image).logits,
        critic(image, image, image).style_logits,
    )
    for logits in all_logits:
        assert functional.cross_entropy(logits, label) < 1e-6
        assert (
            functional.cross_entropy(logits.softmax(1), label) > math.log(1 + 9 / math.e) - 1e-6
        )  # control


def test_critique_depends_on_its_own_sample_alone():
    critic = Discriminator(16, 1, styles=3, width=4)
    inputs = [torch.randn(3, 1, 16, 16) for _ in range(3)]
    others = [torch.cat([x[:1], 9 * torch.randn(2, 1, 16, 16)]) for x in inputs]
    for ours, theirs in zip(critic(*inputs), critic(*others), strict=True):
        assert torch.allclose(ours[0], theirs[0], atol=1e-5)


def test_critique_depends_on_all_three_images():
    critic = Discriminator(16, 1, styles=3, width=4)
    images = torch.randn(3, 2, 1, 16, 16, requires_grad=True)
    critique = critic(*images)
    assert critique.logits.shape == (2,)
    assert critique.style_logits.shape == (2, 3)
    (gradient,) = torch.autograd.grad(critique.logits.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_discriminator_has_layer_norm_on_all_but_the_first_convolution():
    critic = Discriminator(64, 1, styles=3, width=2)
    walk = [m for m in critic.modules() if not list(m.children())]
    kinds = [type(m) for m in walk[:-2]]
    rest = 5 * [StridedConv2d, nn.GroupNorm, nn.LeakyReLU]
    assert kinds == [StridedConv2d, nn.LeakyReLU, *rest]
    assert all(m.num_groups == 1 for m in walk if isinstance(m, nn.GroupNorm))
    assert all(m.negative_slope == 0.2 for m in walk if isinstance(m, nn.LeakyReLU))
    assert [m.out_channels for m in walk if isinstance(m, nn.Conv2d)] == [2, 4, 8, 16, 32, 64]
    assert critic.inner(critic.first(torch.randn(1, 3, 64, 64))).shape[2:] == (1, 1)
    assert (critic.critic.out_features, critic.style.out_features) == (1, 3)


def test_weights_start_xavier_normal_with_zero_biases():
    network = Generator(16, 1, styles=2, characters=2, width=8)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            taps = module.kernel_size[0] ** 2
            std = math.sqrt(2 / (taps * (module.in_channels + module.out_channels)))
            assert module.weight.std().item() == pytest.approx(std, rel=0.05), name
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert not module.bias.any(), name
