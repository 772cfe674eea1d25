"""The history of images: its law, image by image, and that nothing of it is shared or lost."""

import pytest
import torch
from test_trainer import assert_same, everything

from gan.build import build
from gan.pool import ImagePool

SHAPE = (2, 3, 4)


def numbered(*numbers):
    """Images whose every element is their number."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None, None, None].expand(-1, *SHAPE)


def numbers(images):
    assert (images == images[:, :1, :1, :1]).all()  # an image is kept whole
    return images[:, 0, 0, 0].tolist()


def one_by_one(size, images, drawn, taken, stored):
    """The definition: images enter in turn; `stored` is the list so far, changed in place."""
    returned = []
    for image, place, exchange in zip(images, drawn, taken, strict=True):
        if len(stored) < size:
            stored.append(image)
            returned.append(image)
        elif exchange:
            returned.append(stored[place])
            stored[place] = image
        else:
            returned.append(image)
    return returned


@pytest.mark.parametrize(("size", "batch"), [(1, 5), (2, 8), (3, 1), (5, 3), (50, 4)])
def test_a_batch_is_what_its_images_one_by_one_are(size, batch):
    pool, stored, count = ImagePool(size, *SHAPE), [], 0
    for seed in range(30):
        images = list(range(count, count + batch))
        count += batch
        torch.manual_seed(seed)
        drawn = torch.randint(size, (batch,)).tolist()
        taken = (torch.rand(batch) < 0.5).tolist()
        torch.manual_seed(seed)
        returned = pool(numbered(*images))
        assert numbers(returned) == one_by_one(size, images, drawn, taken, stored)
        assert numbers(pool.stored)[: len(stored)] == stored
        assert pool.filled == len(stored)


def test_half_of_the_images_are_exchanged_for_uniformly_drawn_ones():
    torch.manual_seed(0)
    pool = ImagePool(8, *SHAPE)
    pool(numbered(*range(8)))
    places, rounds = [], 1000
    for number in range(8, 8 + rounds):
        before = numbers(pool.stored)
        (returned,) = numbers(pool(numbered(number)))
        if returned != number:
            places.append(before.index(returned))
            assert numbers(pool.stored)[places[-1]] == number
        else:
            assert numbers(pool.stored) == before
    assert len(places) / rounds == pytest.approx(0.5, abs=4 * (0.25 / rounds) ** 0.5)
    shares = torch.bincount(torch.tensor(places), minlength=8) / len(places)
    assert (shares - 1 / 8).abs().max() < 4 * (7 / 64 / len(places)) ** 0.5


def test_a_pool_of_nothing_gives_back_what_comes():
    images = numbered(1, 2).clone().requires_grad_()
    returned = ImagePool(0, *SHAPE)(images)
    assert torch.equal(returned, images)
    assert not returned.requires_grad


def test_images_are_detached_and_in_memory_of_their_own():
    torch.manual_seed(0)
    pool, kept = ImagePool(2, *SHAPE), []
    for number in range(0, 60, 3):
        images = numbered(number, number + 1, number + 2).clone().requires_grad_()
        before = images.detach().clone()
        returned = pool(images)
        assert not returned.requires_grad
        kept.append((returned, returned.clone()))
        assert torch.equal(images, before)
        with torch.no_grad():
            images.zero_()  # what the generator does next is no part of the history
    assert all(torch.equal(now, then) for now, then in kept)
    assert 0 not in numbers(pool.stored)


def test_broken_images_pass_and_are_never_stored():
    torch.manual_seed(0)
    pool = ImagePool(3, *SHAPE)
    broken = numbered(0, 1, 2, 3).clone()
    broken[1, 0, 0, 0], broken[3, 1, 2, 3] = torch.nan, torch.inf
    returned = pool(broken)
    assert returned[1].isnan().any()
    assert returned[3].isinf().any()
    assert pool.filled == 2
    assert numbers(pool.stored[:2]) == [0, 2]
    for _ in range(20):
        pool(broken)
        assert pool.stored.isfinite().all()


def test_half_precision_is_stored_exactly():
    torch.manual_seed(0)
    images = torch.randn(4, *SHAPE).bfloat16()
    pool = ImagePool(4, *SHAPE)
    assert torch.equal(pool(images), images.float())
    assert torch.equal(pool.stored, images.float())


def test_the_state_is_all_that_a_pool_remembers():
    torch.manual_seed(0)
    pool = ImagePool(4, *SHAPE)
    pool(numbered(0, 1, 2))
    pool(numbered(3, 4, 5))
    twin, blank = ImagePool(4, *SHAPE), ImagePool(4, *SHAPE)
    twin.load_state_dict(pool.state_dict())
    results = []
    for one in (pool, twin, blank):
        torch.manual_seed(1)
        results.append(torch.cat([one(numbered(n, n + 1)) for n in range(6, 30, 2)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_run_goes_on_exactly_only_with_its_pools(tiny):
    """Leave the pools out of what is restored: the run must differ from an unbroken one."""

    def started(run_dir):
        small = ["recipe.pool=6", "trainer.batch_size=4", "discriminator.layers=1"]
        return build(tiny("cyclegan", *small, f"run_dir={run_dir}"))

    def played(trainer, steps):
        for _ in range(steps):
            trainer.play()
        trainer.stream.close()
        return everything(trainer)

    parts = started("parts")
    played(parts, 3)
    parts.save()
    again, without = started("parts"), started("parts")
    for pool in (without.recipe.pool_a, without.recipe.pool_b):
        assert pool.filled == 6
        pool.stored, pool.filled = torch.zeros_like(pool.stored), torch.zeros_like(pool.filled)
    whole = played(started("whole"), 5)
    assert_same(whole, played(again, 2))
    networks = [
        {name: tensor for name, tensor in tensors.items() if "pool" not in name}
        for tensors, _ in (whole, played(without, 2))
    ]
    with pytest.raises(AssertionError):
        assert_same((networks[0], None), (networks[1], None))
