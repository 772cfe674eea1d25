"""A style learnt by heart: what moves and what does not, by how much, and when it is enough."""

import dataclasses

import pytest
import torch
from torch.nn.functional import l1_loss

import gan
from gan import runs, styles
from gan.font.prototypes import trained_on
from gan.networks.wnet import Generator
from gan.orientations import ORIENTATIONS, oriented
from gan.styles import accuracy, adapted, known


@pytest.fixture(params=[False, True], ids=["one orientation", "eight"])
def writer(request):
    """A generator in evaluation mode that has run its statistics in."""
    torch.manual_seed(0)
    made = Generator(16, 1, styles=3, characters=5, width=8, dropout=0.0)
    for _ in range(20):
        made(torch.randn(8, 1, 16, 16), torch.randn(8, 1, 1, 16, 16))
    made.self_ensemble = request.param
    return made.eval().requires_grad_(False)


@pytest.fixture
def pair():
    """What three references show, and the references, which are dark."""
    torch.manual_seed(1)
    shown, references = torch.rand(2, 3, 1, 16, 16)
    return torch.stack([2 * shown - 1, references - 1])


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kept", [False, True])
def test_references_are_drawn_better_and_nothing_else_has_changed(writer, pair, kept):
    others = torch.rand(5, 1, 16, 16) if kept else None
    before, random = state(writer), torch.get_rng_state()
    own = adapted(writer, *pair, steps=20, others=others)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in writer.state_dict().items())
    after = state(own)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name.split(".")[0] for name in moved} == {"decoder"}
    assert not any("running" in name for name in moved)
    assert not any(parameter.requires_grad for parameter in own.parameters())
    assert not own.training
    shown, references = pair
    given = shown, references.expand(3, 3, 1, 16, 16)
    assert l1_loss(own(*given), references) < 0.97 * l1_loss(writer(*given), references)
    again = adapted(writer, *pair, steps=20, others=others)
    assert all(torch.equal(after[name], tensor) for name, tensor in again.state_dict().items())
    other = adapted(writer, *pair, steps=20, others=others, seed=1)
    assert not torch.equal(other.decoder.image[1].weight, own.decoder.image[1].weight)


@pytest.mark.parametrize(("kept", "pale"), [(None, 0.0), (0.0, 0.0), (10.0, 0.0), (0.0, 10.0)])
def test_a_step_is_adams_down_the_losses_in_every_orientation(
    writer, pair, monkeypatch, kept, pale
):
    """Adam's first step is its rate against the sign of each gradient."""
    monkeypatch.setattr(styles, "BENT", 0.0)
    monkeypatch.setattr(styles, "ROWS", 1)
    monkeypatch.setattr(styles, "KEPT", kept)
    monkeypatch.setattr(styles, "PALE", pale)
    others = None if kept is None else torch.rand(5, 1, 16, 16)
    own = adapted(writer, *pair, steps=1, others=others)
    assert own.self_ensemble == writer.self_ensemble
    ways = range(ORIENTATIONS) if writer.self_ensemble else [0]
    writer.self_ensemble = False
    writer.decoder.requires_grad_(True)
    shown, references = pair
    losses = []
    for way in ways:
        given = oriented(references, way).expand(3, 3, 1, 16, 16)
        drawn = writer(oriented(shown, way), given)
        losses.append((drawn - oriented(references, way)).abs().mean() / 2)
        if kept:  # the first three of the others: as many as there are references
            content = writer.encode_content(oriented(others[:3], way)).code
            read = writer.encode_content(writer(oriented(others[:3], way), given)).code
            losses.append(kept * (read - content).square().mean())
        if pale:
            ink = (1 - writer(oriented(others[:3], way), given)) / 2
            losses.append(pale * (ink * (1 - ink)).mean())
    (torch.stack(losses).sum() / len(ways)).backward()
    stepped = 0
    for before, after in zip(writer.decoder.parameters(), own.decoder.parameters(), strict=True):
        sure = before.grad.abs() > 1e-5
        expected = before.detach() - styles.RATE * before.grad.sign()
        torch.testing.assert_close(after[sure], expected[sure], rtol=0, atol=2e-6)
        stepped += int(sure.sum())
    assert stepped > 10_000


def test_others_come_in_turn_and_stay_legible(writer, pair, monkeypatch):
    others, seen = torch.rand(5, 1, 16, 16) * 2 - 1, []
    real = styles._harm
    monkeypatch.setattr(styles, "ROWS", 1)
    monkeypatch.setattr(styles, "_harm", lambda *given: seen.append(given[2]) or real(*given))
    own = adapted(writer, *pair, steps=30, others=others)
    turns = torch.cat([some[:3] for some in seen])
    assert torch.equal(turns, others.repeat(18, 1, 1, 1))
    style = pair[1].expand(5, 3, 1, 16, 16)

    def lost(generator):  # for the encoder as it was before
        generator.self_ensemble = writer.self_ensemble = False
        codes = [writer.encode_content(x).code for x in (generator(others, style), others)]
        return (codes[0] - codes[1]).square().mean()

    def pale(generator):
        ink = (1 - generator(others, style)) / 2
        return (ink * (1 - ink)).mean()

    plain = adapted(writer, *pair, steps=30)
    assert lost(own) < 0.97 * lost(plain)
    monkeypatch.setattr(styles, "PALE", 0.0)
    assert pale(own) < pale(adapted(writer, *pair, steps=30, others=others))


def test_it_stops_where_the_references_are_drawn_well_enough(writer, pair, monkeypatch):
    seen = []
    real = styles.l1_loss
    monkeypatch.setattr(styles, "l1_loss", lambda *images: seen.append(real(*images)) or seen[-1])
    adapted(writer, *pair, steps=30)
    assert len(seen) == 30
    ink = [loss.item() / 2 for loss in seen]
    enough = (ink[0] + min(ink)) / 2
    first = next(place for place, loss in enumerate(ink) if loss <= enough)
    assert 0 < first < 29
    seen.clear()
    some = adapted(writer, *pair, steps=30, enough=enough)
    assert len(seen) == first + 1  # the last one is only looked at
    expected = adapted(writer, *pair, steps=first)
    assert torch.equal(some.decoder.image[1].weight, expected.decoder.image[1].weight)
    for same in (adapted(writer, *pair, steps=0), adapted(writer, *pair, enough=1.0)):
        both = zip(same.parameters(), writer.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in both)


def test_each_reference_needs_its_character(writer, pair):
    with pytest.raises(ValueError, match=r"shown \[2, 1, 16, 16\], references \[3, 1, 16, 16\]"):
        adapted(writer, pair[0][:2], pair[1])
    with pytest.raises(ValueError, match="there must be a reference"):
        adapted(writer, pair[0][:0], pair[1][:0])


def test_a_run_learns_a_style_and_writes_it(trained, pair):
    trained("wnet")
    run = gan.load("run")
    own = run.adapted(*pair, steps=3)
    assert dataclasses.replace(own, generator=run.generator) == run
    expected = adapted(run.generator, *pair, steps=3)(pair[0], pair[1].expand(3, 3, 1, 16, 16))
    torch.testing.assert_close(own.write(*pair), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(own.write(*pair), run.write(*pair), atol=1e-4)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        run.adapted(*pair, steps=-1)


def test_only_a_wnet_learns_styles(trained, pair):
    trained("dcgan")
    with pytest.raises(ValueError, match="styles are learnt for recipe=wnet and its like"):
        gan.load("run").adapted(*pair)


def test_how_well_a_run_draws_is_the_mean_difference_of_ink_on_what_it_was_trained_on(trained):
    trained("wnet")
    run = runs.load("run")
    dataset = trained_on(run)
    batch, many = known(dataset, run.device), styles.KNOWN
    plan = dataset.shown(tuple(batch), many)["seen-style-seen-character"]
    assert len(batch["target"]) == min(many, len(plan.images["target"]))
    drawn = run.generator(batch["prototype"], batch["reference"])
    ink = [(1 - images) / 2 for images in (drawn, batch["target"])]
    assert accuracy(run.generator, batch) == pytest.approx(
        float((ink[0] - ink[1]).abs().mean()), rel=1e-5
    )

    def perfect(*_):
        return batch["target"]

    run.generator.forward = perfect
    assert accuracy(run.generator, batch) == 0
