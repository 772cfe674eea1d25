"""Augmentation: the law of every change, both players under it, and what it leaves alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from gan import draws
from gan.augment import Augmentation
from gan.build import build
from gan.losses.penalties import input_gradient
from gan.recipes.conditional import Conditional
from gan.recipes.synthesis import Synthesis
from gan.registry import ConfigError, create, names

CHANGES = [name for name in names("augment") if name != "ada"]  # which says how often


@pytest.fixture
def image():
    return 2 * torch.rand(3, 2, 12, 16, generator=torch.Generator().manual_seed(1)).double() - 1


def test_no_change_returns_the_images_themselves(image):
    assert Augmentation({})(image) is image
    assert not Augmentation({"shift": create("augment", "shift")}).state_dict()


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_out_of_place_and_drawn_for_each_sample(name, image):
    change, before = create("augment", name), image.clone()
    torch.manual_seed(0)
    same = image[:1].expand(64, -1, -1, -1)
    made = change(same)
    assert made.shape == same.shape
    assert made.dtype == same.dtype
    assert torch.equal(image, before)
    assert len({tuple(sample.flatten().tolist()) for sample in made}) > 10  # one draw a batch: 1
    torch.manual_seed(0)
    assert torch.equal(change(same), made)  # torch's generator is the only source


@pytest.mark.parametrize("name", CHANGES)
def test_images_of_fewer_bits_are_changed_by_the_same_numbers(name, image):
    """Fakes come so under autocast, and reals do not."""
    changes = {name: create("augment", name), "ada": create("augment", "ada", start=0.5)}
    augmentation, short = Augmentation(changes), image.bfloat16()

    def changed(image):
        torch.manual_seed(0)
        return augmentation(image.repeat(8, 1, 1, 1))

    torch.testing.assert_close(changed(short), changed(short.float()), rtol=0, atol=0)
    assert not torch.equal(changed(short), short.float().repeat(8, 1, 1, 1))
    assert changed(image).dtype == image.dtype == torch.float64


@pytest.mark.parametrize("name", CHANGES)
def test_gradients_pass_twice(name, image):
    """To the generator, and through a gradient penalty: each sample's own."""
    change = create("augment", name)

    def fixed(x):
        torch.manual_seed(3)
        return change(x)

    image.requires_grad_()
    assert torch.autograd.gradcheck(fixed, image[:2, :, :3, :4].detach().requires_grad_())
    slope = input_gradient(lambda x: fixed(x).square().sum((1, 2, 3)), image)
    (second,) = torch.autograd.grad(slope.square().sum(), image, allow_unused=True)
    assert second is None  # the penalty's points are leaves of their own
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    slope = input_gradient(lambda x: (weight * fixed(x)).square().sum((1, 2, 3)), image)
    (second,) = torch.autograd.grad(slope.sum(), weight)
    assert torch.allclose(second, slope.sum().detach())  # slope = weight^2 * ..., at weight 2


def test_brightness_adds_one_number_a_sample(image):
    added = create("augment", "brightness", strength=0.5)(image.expand(3, 2, 12, 16)) - image
    assert torch.allclose(added, added[:, :1, :1, :1].expand_as(added))
    many = create("augment", "brightness", strength=0.5)(torch.zeros(4000, 1, 1, 1)).flatten()
    assert -0.5 <= many.min() < -0.49
    assert 0.49 < many.max() <= 0.5
    assert abs(many.mean()) < 0.02


@pytest.mark.parametrize(
    ("name", "axes", "low", "high"),
    [("saturation", (1,), 0.0, 2.0), ("contrast", (1, 2, 3), 0.5, 1.5)],
)
def test_saturation_and_contrast_scale_the_distance_to_their_mean(name, axes, low, high, image):
    made = create("augment", name)(image)
    mean = image.mean(axes, keepdim=True)
    assert torch.allclose(made.mean(axes, keepdim=True), mean)
    factor = ((made - mean) / (image - mean)).flatten(1)
    assert torch.allclose(factor, factor[:, :1].expand_as(factor))
    wrong = image.mean((2, 3), keepdim=True)  # the distance to another mean is not scaled
    factor = ((made - wrong) / (image - wrong)).flatten(1)
    assert not torch.allclose(factor, factor[:, :1].expand_as(factor), rtol=0.1)
    point = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(4000, 2, 1, 1)
    factors = create("augment", name)(point)[:, 1].flatten()
    assert low <= factors.min() < low + 0.02
    assert high - 0.02 < factors.max() <= high


def test_saturation_leaves_grey_images_alone():
    grey = torch.rand(3, 1, 4, 5)
    assert torch.allclose(create("augment", "saturation")(grey), grey)


@pytest.mark.parametrize("border", [False, True])
def test_shift_moves_whole_samples_by_up_to_its_share(border):
    torch.manual_seed(0)
    height, width, padding = 8, 16, "replicate" if border else "constant"
    place = torch.arange(1.0, 1 + height * width).view(1, 1, height, width)
    made = create("augment", "shift", ratio=0.25, border=border)(place.repeat(400, 1, 1, 1))
    wide = pad(place, (4, 4, 2, 2), padding)  # every shift is a window of this
    windows = wide.unfold(2, height, 1).unfold(3, width, 1).reshape(-1, 1, height, width)
    assert len(windows) == 5 * 9
    same = (made[:, None] == windows[None]).flatten(2).all(2)  # [400, 45]
    assert (same.sum(1) == 1).all()
    assert same.any(0).all()  # every shift comes up


def test_cutout_greys_one_box_of_half_the_sides():
    torch.manual_seed(0)
    made = create("augment", "cutout")(torch.ones(500, 2, 8, 12))
    assert torch.equal(made[:, 0], made[:, 1])
    sizes = set()
    for sample in made[:, 0]:
        gone = (sample == 0).nonzero()
        low, high = gone.min(0).values, gone.max(0).values
        assert len(gone) == (high - low + 1).prod()  # a full box
        sizes.add(tuple((high - low + 1).tolist()))
    assert max(sizes) == (4, 6)
    assert min(sizes)[0] >= 2  # the centre lies inside or on the border


@pytest.mark.parametrize(("ratio", "positions"), [(0.5, 9), (0.375, 8)])  # 4 of 8 places, and 3
def test_cutout_takes_every_position_and_reaches_as_far_over_either_end(ratio, positions):
    torch.manual_seed(0)
    gone = create("augment", "cutout", ratio=ratio)(torch.ones(500, 1, 8, 8))[:, 0] == 0
    for side in (1, 2):
        spans = {tuple(span) for span in gone.any(side).tolist()}
        assert len(spans) == positions
        assert spans == {span[::-1] for span in spans}


# -- what moves while training goes on


def adaptive(**settings):
    """An augmentation whose only change is brightness by one."""
    changes = {"ada": create("augment", "ada", **settings), "white": lambda image: image + 1}
    return Augmentation(changes)


def probabilities(augmentation, logits, updates):
    """p after each update with these logits of reals."""
    used, found = [], []
    for _ in range(updates):
        used.append(augmentation.learnt(logits)["augment_probability"])
        found.append(augmentation.ada.probability.clone())
    assert used[1:] == found[:-1]  # what is logged is what the update's images were changed with
    return torch.stack(found).tolist()


def test_sure_logits_raise_the_probability_to_one_in_so_many_images():
    augmentation = adaptive(images=96, every=4)
    found = probabilities(augmentation, torch.full((3, 1, 2, 2), 0.1), 40)  # 12 images a move
    assert found == pytest.approx([min(1, 0.125 * (n // 4)) for n in range(1, 41)])
    assert augmentation.seen == 120
    assert probabilities(augmentation, -torch.ones(3), 44)[3::4] == pytest.approx(
        [max(0, 1 - 0.125 * n) for n in range(1, 12)]
    )


def test_the_probability_never_leaves_its_bounds():
    found = probabilities(adaptive(images=10, every=1, most=0.8), torch.ones(3), 5)
    assert found == pytest.approx([0.3, 0.6, 0.8, 0.8, 0.8])
    assert probabilities(adaptive(images=10, every=1), -torch.ones(3), 3) == [0, 0, 0]
    assert probabilities(adaptive(start=0.5, most=0.2), -torch.ones(3), 1) == pytest.approx([0.2])


@pytest.mark.parametrize("patches", [(), (1, 2, 3)])
def test_the_mean_sign_of_all_updates_since_the_last_move_decides(patches):
    """Of 8 logits 7 are positive, so r = 0.75; of the last update alone it would be 0.5."""
    first, second = torch.tensor([9.0, 0.1, 9, 9]), torch.tensor([0.1, 9, 9, -99])  # mean < 0
    for target, expected in ((0.7, 0.16), (0.8, 0.0)):
        augmentation = adaptive(images=50, every=2, target=target)
        for logits in (first, second):
            wide = logits.reshape(-1, *(1,) * len(patches)).expand(-1, *patches)
            found = probabilities(augmentation, wide, 1)
        assert found == pytest.approx([expected])
    augmentation = adaptive(images=50, every=2, target=0.7)
    probabilities(augmentation, second, 2)  # r = 0.5
    assert probabilities(augmentation, first, 2)[1] == pytest.approx(
        0.16
    )  # what came before is gone


@pytest.mark.parametrize("batch", [5, 10, 25, 50, 100])
def test_the_probability_rests_where_the_mean_sign_is_the_target(batch):
    logits = torch.ones(batch)
    logits[batch * 4 // 5 :] = -1  # r = 0.6
    augmentation = adaptive(images=1000, every=1, start=0.5)
    assert probabilities(augmentation, logits, 3) == [0.5] * 3


def test_a_logit_that_is_no_number_counts_for_neither_side():
    logits = torch.tensor([float("nan"), 1.0, 1.0])  # r = 2/3
    assert probabilities(adaptive(images=9, every=1, target=0.6), logits, 1)[0] == pytest.approx(
        1 / 3
    )
    assert probabilities(adaptive(images=9, every=1, target=0.7), logits, 1)[0] == 0


def test_each_sample_is_changed_with_the_probability():
    image = torch.rand(4000, 1, 2, 3)
    torch.manual_seed(0)
    for p in (0.0, 0.3, 1.0):
        made = adaptive(start=p)(image) - image
        changed = made.flatten(1).mean(1) > 0.5
        assert torch.allclose(made, changed[:, None, None, None].float().expand_as(made), atol=1e-6)
        assert abs(changed.float().mean() - p) < 0.03
    assert torch.equal(adaptive()(image), image)
    two = Augmentation(
        {"ada": create("augment", "ada", start=0.5), **dict.fromkeys("ab", lambda x: x + 1)}
    )
    counts = torch.bincount(two(torch.zeros(4000, 1, 1, 1)).long().flatten())
    assert counts.tolist() == pytest.approx(
        [1000, 2000, 1000], abs=150
    )  # one draw for both: no ones


def test_a_batch_in_pieces_moves_the_probability_once():
    whole, pieces = (adaptive(images=24, every=1) for _ in range(2))
    noise = create("augment", "noise", strength=1.0, images=24)
    pieces.changes.append(noise)
    logits = torch.tensor([1.0, 1, 1, 1, 1, -1])  # r = 2/3; of the last piece alone 0
    assert probabilities(whole, logits, 1)[0] == pytest.approx(0.25)
    found = []
    for first in (0, 2, 4):
        with draws.shared(draws.Share(first, 2, 6), seed=0):
            found += probabilities(pieces, logits[first : first + 2], 1)
            assert noise.deviation == (1.0 if first < 4 else 0.75)
    assert found == pytest.approx([0, 0, 0.25])
    assert torch.equal(whole.seen, pieces.seen)


def test_noise_fades_along_a_line_and_the_probability_leaves_it_alone():
    noise = create("augment", "noise", strength=0.4, images=100)
    augmentation = Augmentation({"noise": noise, "ada": create("augment", "ada")})
    torch.manual_seed(0)
    image = torch.zeros(10, 1, 40, 50)
    for expected in (0.4, 0.36, 0.32, 0.28):
        assert augmentation(image).std().item() == pytest.approx(expected, rel=0.03)
        assert not torch.equal(augmentation(image), augmentation(image))
        augmentation.learnt(torch.ones(10))
    for _ in range(8):
        augmentation.learnt(torch.ones(10))
    assert noise.deviation == 0
    assert torch.equal(noise(image + 0.3), image + 0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["augment.ada.target=0.6"], "there are none: name some, as augment.shift.ratio"),
        (["augment.ada={}", "augment.noise={}"], "there are none"),
        (
            ["augment.ada={}", "augment.shift={}", "adversarial=wasserstein"],
            "adversarial=wasserstein: choose adversarial=nonsaturating",
        ),
        (["augment.ada.target=1.5", "augment.shift={}"], "augment.ada.target must be"),
    ],
)
def test_a_probability_of_nothing_or_without_a_sign_is_refused(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny("dcgan", *options))


def test_what_moves_is_part_of_a_checkpoint_and_of_the_log(tiny, tmp_path):
    options = [
        "augment.ada={every: 1, images: 64, target: 0}",
        "augment.shift={}",
        "augment.noise={}",
    ]
    trainer = build(tiny("dcgan", *options))
    trainer.play()
    trainer.play()
    state = {k: v.clone() for k, v in trainer.recipe.augment.state_dict().items()}
    moving = {"ada.probability", "ada.signs", "noise.deviation"}
    assert {*state} == {"seen", *(f"moving.{name}" for name in moving)}
    assert state["seen"] == 2 * trainer.settings.batch_size
    assert 0 < state["moving.noise.deviation"] < 0.1
    assert len(trainer.monitor.pending()["discriminator/augment_probability"]) == 2
    trainer.save()
    trainer.stream.close()
    again = build(tiny("dcgan", *options))
    assert again.step == 2
    for name, value in again.recipe.augment.state_dict().items():
        assert torch.equal(value, state[name]), name
    again.stream.close()


# -- in the game


class Recorder(nn.Module):
    """A discriminator that remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], nn.Parameter(torch.ones(()))

    def forward(self, image):
        self.seen.append(image.detach())
        return (self.weight * image).sum((1, 2, 3))


def game(**augment):
    generator = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    generator.latent = 2
    changes = {name: create("augment", name, **values) for name, values in augment.items()}
    loss = create("adversarial", "wasserstein")
    return Synthesis(generator, Recorder(), loss, {}, augment=changes)


def test_both_players_see_both_kinds_under_the_changes():
    recipe = game(brightness={"strength": 0.5})
    batch = {"real": torch.zeros(64, 1, 4, 4)}
    fakes = recipe.generate(batch)
    recipe.discriminator_losses(batch, {"image": torch.zeros(64, 1, 4, 4)}, 0)
    real, fake = recipe.discriminator.seen
    recipe.generator_losses(batch, fakes, 0)["adversarial"].backward()
    shown = recipe.discriminator.seen[-1]
    for seen, given in ((real, 0), (fake, 0), (shown, fakes["image"].detach())):
        assert 0.2 < (seen - given).flatten(1).mean(1).std() < 0.4  # uniform of +-0.5: 0.29
    assert not torch.equal(real, fake)  # drawn anew
    assert all(p.grad.abs().sum() > 0 for p in recipe.generator.parameters())


def test_without_changes_the_game_is_the_same_bit_for_bit():
    def played(**augment):
        torch.manual_seed(0)
        recipe = game(**augment)
        batch = {"real": torch.rand(3, 1, 4, 4)}
        return recipe.discriminator_losses(batch, recipe.generate(batch), 0)["adversarial"]

    assert torch.equal(played(), played(brightness={"strength": 0.0}, shift={"ratio": 0.0}))
    assert not torch.equal(played(), played(brightness={}))


def test_samples_are_not_changed():
    recipe = game(cutout={"ratio": 1.0})
    shown = recipe.samples(recipe.generator, {})["generated"]
    assert torch.equal(shown, recipe.generator(recipe.shown))


@pytest.mark.parametrize("condition", ["projection", "auxiliary"])
def test_labels_are_judged_under_the_changes(condition):
    torch.manual_seed(0)
    shape = {"size": 8, "channels": 1, "width": 4, "classes": 3}
    recipe = Conditional(
        create("generator", "resnet", latent=4, **shape),
        create("discriminator", "resnet", condition=condition, norm="none", **shape),
        create("adversarial", "hinge"),
        {},
        create("classification", "cross_entropy"),
        3,
        augment={"black": lambda image: 0 * image},
    )
    label = torch.tensor([2, 0, 1, 2])
    batch = {"real": torch.rand(4, 1, 8, 8), "label": label}
    black = recipe.discriminator.critique(torch.zeros(4, 1, 8, 8), label)
    terms = recipe.discriminator_losses(batch, recipe.generate(batch), 0)
    assert torch.allclose(terms["logits_real"], black.logits.mean())
    assert torch.allclose(terms["logits_fake"], black.logits.mean())
    assert torch.allclose(recipe.judge(batch)(batch["real"]), black.logits)
    if condition == "auxiliary":
        loss = recipe.classification(black.class_logits, label)
        assert torch.allclose(terms["class_real"], loss)
        assert torch.allclose(terms["class_fake"], loss)


def test_a_preset_takes_changes_by_name(tiny):
    trainer = build(tiny("dcgan", "augment.shift.border=true", "augment.cutout={}"))
    assert [type(change).__name__ for change in trainer.recipe.augment.changes] == [
        "Shift",
        "Cutout",
    ]
    assert trainer.recipe.augment.changes[0].border
    trainer.play()
    trainer.stream.close()


def test_a_recipe_of_several_images_refuses_changes(tiny):
    with pytest.raises(ConfigError, match=r"augment\.shift .* recipe=wnet"):
        build(tiny("wnet", "augment.shift.ratio=0.1"))


def test_an_unknown_change_names_the_nearest(tiny):
    with pytest.raises(ConfigError, match="shift"):
        build(tiny("dcgan", "augment.shfit.ratio=0.1"))
