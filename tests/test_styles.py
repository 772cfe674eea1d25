"""A style learnt by heart: what moves and what does not, by how much, and when it is enough."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import l1_loss

import gan
from gan import runs, styles
from gan.font.prototypes import trained_on
from gan.images import to_floats
from gan.networks.wnet import Generator
from gan.orientations import ORIENTATIONS, oriented
from gan.styles import Relatives, accuracy, adapted, known


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


def stepped(writer, own):
    """How many weights have a gradient, against whose sign each has moved by the rate."""
    count = 0
    for before, after in zip(writer.decoder.parameters(), own.decoder.parameters(), strict=True):
        sure = before.grad.abs() > 1e-5
        expected = before.detach() - styles.RATE * before.grad.sign()
        torch.testing.assert_close(after[sure], expected[sure], rtol=0, atol=2e-6)
        count += int(sure.sum())
    return count


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
    one, again, other = (
        state(adapted(writer, *pair, steps=3, others=others, seed=seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in again.items())
    assert not torch.equal(one["decoder.image.1.weight"], other["decoder.image.1.weight"])


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
        if kept:  # the first of the others
            content = writer.encode_content(oriented(others[:1], way)).code
            read = writer.encode_content(writer(oriented(others[:1], way), given[:1])).code
            losses.append(kept * (read - content).square().mean())
        if pale:
            ink = (1 - writer(oriented(others[:1], way), given[:1])) / 2
            losses.append(pale * (ink * (1 - ink)).mean())
    (torch.stack(losses).sum() / len(ways)).backward()
    assert stepped(writer, own) > 10_000


def test_others_come_in_turn_and_stay_legible(writer, pair, monkeypatch):
    others, seen = torch.rand(5, 1, 16, 16) * 2 - 1, []
    real = styles._harm
    monkeypatch.setattr(styles, "ROWS", 1)
    monkeypatch.setattr(styles, "_harm", lambda *given: seen.append(given[2]) or real(*given))
    own = adapted(writer, *pair, steps=20, others=others)
    turns = torch.cat([some[:1] for some in seen])
    assert torch.equal(turns, others.repeat(4, 1, 1, 1))
    style = pair[1].expand(5, 3, 1, 16, 16)

    def lost(generator):  # for the encoder as it was before
        generator.self_ensemble = writer.self_ensemble = False
        codes = [writer.encode_content(x).code for x in (generator(others, style), others)]
        return (codes[0] - codes[1]).square().mean()

    def pale(generator):
        ink = (1 - generator(others, style)) / 2
        return (ink * (1 - ink)).mean()

    plain = adapted(writer, *pair, steps=20)
    assert lost(own) < 0.97 * lost(plain)
    monkeypatch.setattr(styles, "PALE", 0.0)
    assert pale(own) < pale(adapted(writer, *pair, steps=20, others=others))


def test_it_stops_where_the_references_are_drawn_well_enough(writer, pair, monkeypatch):
    seen = []
    real = styles.l1_loss
    monkeypatch.setattr(styles, "l1_loss", lambda *images: seen.append(real(*images)) or seen[-1])
    adapted(writer, *pair, steps=15)
    assert len(seen) == 15
    ink = [loss.item() / 2 for loss in seen]
    enough = (ink[0] + min(ink)) / 2
    first = next(place for place, loss in enumerate(ink) if loss <= enough)
    assert 0 < first < 14
    seen.clear()
    some = adapted(writer, *pair, steps=15, enough=enough)
    assert len(seen) == first + 1  # the last one is only looked at
    assert [loss.item() / 2 for loss in seen] == ink[: first + 1]
    moved = iter([0.0] * first)  # of the same rates, with nothing to learn after so many steps
    monkeypatch.setattr(
        styles, "l1_loss", lambda *images: real(*images) + next(moved, float("-inf"))
    )
    expected = adapted(writer, *pair, steps=15)
    assert torch.equal(some.decoder.image[1].weight, expected.decoder.image[1].weight)
    monkeypatch.setattr(styles, "l1_loss", real)
    for same in (adapted(writer, *pair, steps=0), adapted(writer, *pair, enough=1.0)):
        both = zip(same.parameters(), writer.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in both)


@pytest.fixture
def dataset(trained):
    """The tiny glyphs that a run was trained on."""
    trained("wnet")
    return trained_on(runs.load("run"))


def glyph(dataset, style, character):
    """A glyph [1, H, W] in [-1, 1] by name."""
    row = dataset.rows[dataset.style_names.index(style), dataset.characters.index(character)]
    pixels = np.empty((1, *dataset.store.shape), np.uint8)
    dataset.store.read(np.array([row]), pixels)
    return to_floats(pixels)[0]


def relatives_of(dataset, style, shows):
    """Those of a style's own glyphs of some characters."""
    references = torch.stack([glyph(dataset, style, character) for character in shows])
    return Relatives(dataset, torch.device("cpu"), shows, references), references


def test_relatives_are_the_nearer_the_more_alike_their_glyphs_of_the_characters_are(
    dataset, monkeypatch
):
    monkeypatch.setattr(styles, "POWER", 2)  # at which several count
    style = dataset.style_names[dataset.styles.test[0]]
    shows = "".join(dataset.characters[c] for c in dataset.split.train[:2])
    near, _ = relatives_of(dataset, style, shows)
    trained = [dataset.style_names[s] for s in dataset.styles.train]
    off = {
        other: np.mean(
            [
                float((glyph(dataset, other, c) - glyph(dataset, style, c)).abs().mean() / 2)
                for c in shows
            ]
        )
        for other in trained
    }
    assert near.names == sorted(trained, key=off.__getitem__)
    assert near.distance == pytest.approx(min(off.values()), rel=1e-5)
    nearness = np.array([(min(off.values()) / off[other]) ** styles.POWER for other in trained])
    expected = nearness / nearness.sum()
    assert expected.max() < 0.99  # of several
    batches = [*near.batches(200, 10, seed=3)]
    plans = [dataset.style_names[dataset.styles.train[s]] for s in seen_styles(dataset, batches)]
    shares = np.array([plans.count(other) / len(plans) for other in trained])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / len(plans))


def seen_styles(dataset, batches):
    """The training style of every target, which must be a training glyph, as its prototype is."""
    targets = [
        (place, glyph(dataset, dataset.style_names[s], dataset.characters[c]), c)
        for place, s in enumerate(dataset.styles.train)
        for c in dataset.split.train
        if dataset.rows[s, c] >= 0
    ]
    table = torch.stack([image for _, image, _ in targets])
    prototypes = {
        c: glyph(dataset, dataset.style_names[dataset.prototype], dataset.characters[c])
        for c in dataset.split.train
    }
    found = []
    for batch in batches:
        for target, prototype in zip(batch["target"], batch["prototype"], strict=True):
            (same,) = torch.nonzero((table == target).flatten(1).all(1), as_tuple=True)
            assert len(same), "no training glyph"
            place, _, character = targets[int(same[0])]
            assert torch.equal(prototype, prototypes[character])
            found.append(place)
    return found


def test_relatives_follow_from_the_seed_and_from_the_characters_that_are_known(dataset):
    style = dataset.style_names[dataset.styles.test[0]]
    shows = "".join(dataset.characters[c] for c in dataset.split.train[:2])
    near, references = relatives_of(dataset, style, shows)
    batches = [[*near.batches(5, 2, seed=seed)] for seed in (1, 1, 2)]
    assert [len(batch["target"]) for batch in batches[0]] == [5, 5]
    same, other = (
        all(
            torch.equal(one[key], two[key])
            for one, two in zip(batches[0], again, strict=True)
            for key in one
        )
        for again in batches[1:]
    )
    assert (same, other) == (True, False)
    assert not torch.equal(batches[0][0]["target"], batches[0][1]["target"])
    cpu, both = torch.device("cpu"), torch.cat([torch.zeros_like(references[:1]), references])
    more = Relatives(dataset, cpu, "\u9fa5" + shows, both)  # which no style has
    assert (more.names, more.distance) == (near.names, near.distance)
    with pytest.raises(LookupError, match="no style that was trained on has \u9fa5"):
        Relatives(dataset, cpu, "\u9fa5", references[:1])
    own = dataset.style_names[dataset.styles.train[1]]
    itself, _ = relatives_of(dataset, own, shows)
    assert itself.names[0] == own
    assert itself.distance == pytest.approx(0, abs=2e-6)


def test_styles_that_lack_a_character_are_no_relatives(dataset):
    style = dataset.style_names[dataset.styles.test[0]]
    shows = "".join(dataset.characters[c] for c in dataset.split.train[:2])
    near, references = relatives_of(dataset, style, shows)
    first, second, *_ = near.names
    dataset.rows = dataset.rows.copy()
    dataset.rows[dataset.style_names.index(first), dataset.split.train[0]] = -1
    fewer = Relatives(dataset, torch.device("cpu"), shows, references)
    assert fewer.names == [second, *near.names[2:]]
    assert fewer.distance > near.distance
    place = [dataset.style_names[s] for s in dataset.styles.train].index(first)
    assert place not in seen_styles(dataset, fewer.batches(50, 4, seed=0))


def test_a_character_that_few_styles_draw_does_not_decide_who_is_a_relative(dataset):
    style = dataset.style_names[dataset.styles.test[0]]
    shows = "".join(dataset.characters[c] for c in dataset.split.train[:2])
    plain, references = relatives_of(dataset, style, shows[:1])
    both = torch.cat([references, torch.zeros_like(references)])
    dataset.rows = dataset.rows.copy()
    dataset.rows[dataset.styles.train[2:], dataset.split.train[1]] = -1
    more = Relatives(dataset, torch.device("cpu"), shows, both)
    assert (more.names, more.distance) == (plain.names, plain.distance)
    alone = Relatives(dataset, torch.device("cpu"), shows[1:], both[1:])  # there is no better one
    assert {*alone.names} == {dataset.style_names[s] for s in dataset.styles.train[:2]}


class Few:
    """Stands for relatives: the same samples in every batch."""

    def __init__(self, distance):
        torch.manual_seed(2)
        prototype, target = torch.rand(2, 4, 1, 16, 16) * 2 - 1
        reference = torch.rand(4, 2, 1, 16, 16) * 2 - 1
        self.batch = {"prototype": prototype, "target": target, "reference": reference}
        self.distance, self.asked = distance, []

    def batches(self, size, steps, seed):
        self.asked.append((size, steps, seed))
        return iter([self.batch] * steps)


@pytest.mark.parametrize("writer", [False], indirect=True)
@pytest.mark.parametrize(
    ("distance", "enough", "nearness", "learnt"),
    [(0.05, 0.1, 1.0, False), (0.2, 0.1, 0.5**6, False), (0.2, 1.0, 1.0, True)],
)
def test_relatives_are_learnt_beside_the_more_the_nearer_they_are(
    writer, pair, monkeypatch, distance, enough, nearness, learnt
):
    monkeypatch.setattr(styles, "BENT", 0.0)
    monkeypatch.setattr(styles, "ROWS", 1)
    shown, references = pair
    few = Few(distance)
    own = adapted(writer, shown, references, 1, enough, relatives=few, seed=5)
    assert few.asked == [(styles.BESIDE, 1, 5)]
    writer.decoder.requires_grad_(True)
    drawn = writer(few.batch["prototype"], few.batch["reference"])
    loss = styles.NEAR * nearness * (drawn - few.batch["target"]).abs().mean() / 2
    if not learnt:
        off = writer(shown, references.expand(3, 3, 1, 16, 16)) - references
        loss = loss + off.abs().mean() / 2
    loss.backward()
    assert stepped(writer, own) > 1_000


def test_relatives_are_shown_in_every_orientation_that_is_drawn(writer, pair, monkeypatch):
    seen = []
    real = styles._missed
    monkeypatch.setattr(styles, "_missed", lambda *given: seen.append(given) or real(*given))
    few, read = Few(0.1), []
    monkeypatch.setattr(styles, "BENT", 0.0)
    encode = Generator.encode_style
    monkeypatch.setattr(
        Generator, "encode_style", lambda self, x: read.append(x) or encode(self, x)
    )
    adapted(writer, *pair, 60, 1e-6, relatives=few)
    del read[0]  # the references' own
    every = {*range(ORIENTATIONS)} if writer.self_ensemble else {0}
    ways = []
    for references, (_, _, prototypes, truth, _) in zip(read, seen[1::2], strict=True):
        images = {"prototype": prototypes, "target": truth, "reference": references}
        for n in range(4):
            (way,) = (
                way
                for way in every
                if all(torch.equal(x[n], oriented(few.batch[k][n], way)) for k, x in images.items())
            )
            ways.append(way)
    assert {*ways} == every
    most = max(ways.count(way) for way in every)
    assert most < 240 / len(every) + 5 * (240 / len(every)) ** 0.5


def test_a_paired_generator_learns_from_references_beside_their_characters(
    writer, pair, monkeypatch
):
    """All glyphs of a sample are turned alike, and its characters stay beside their references."""
    torch.manual_seed(3)
    told = Generator(16, 1, styles=3, characters=5, width=8, dropout=0.0, paired=True).eval()
    told.self_ensemble = writer.self_ensemble
    few, read, seen = Few(0.1), [], []
    few.batch["shown"] = torch.rand(4, 2, 1, 16, 16) * 2 - 1
    encode, missed = Generator.encode_style, styles._missed
    monkeypatch.setattr(styles, "BENT", 0.0)
    monkeypatch.setattr(
        Generator, "encode_style", lambda self, x: read.append(x) or encode(self, x)
    )
    monkeypatch.setattr(styles, "_missed", lambda *given: seen.append(given[2:4]) or missed(*given))
    shown, references = pair
    own = adapted(told, shown, references, 20, 1e-6, relatives=few)
    assert own.paired
    ways = range(ORIENTATIONS) if writer.self_ensemble else [0]
    both = torch.cat([references, shown], 1)
    assert torch.equal(read.pop(0), torch.stack([oriented(both, way) for way in ways]))
    sample = torch.cat([few.batch["reference"], few.batch["shown"]], 2)
    glyphs = few.batch["prototype"], few.batch["target"]
    for given, drawn in zip(read, seen[1::2], strict=True):
        for n in range(4):
            (way,) = (way for way in ways if torch.equal(given[n], oriented(sample[n], way)))
            for before, after in zip(glyphs, drawn, strict=True):
                assert torch.equal(after[n], oriented(before[n], way))


def test_relatives_need_to_know_what_is_enough(writer, pair):
    with pytest.raises(ValueError, match="relatives count by how near they are beside `enough`"):
        adapted(writer, *pair, relatives=Few(0.1))


def test_the_rate_falls_to_zero_in_a_straight_line(writer, pair, monkeypatch):
    rates = []

    class Watched(torch.optim.Adam):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    adapted(writer, *pair, steps=5)
    assert rates == pytest.approx([styles.RATE * share for share in (1, 0.8, 0.6, 0.4, 0.2)])


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
