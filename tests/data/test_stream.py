"""Batches: which samples, in which order, and how bytes become floats."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tiny_glyphs import TinyGlyphs

from gan.data import stream as stream_module
from gan.data.datasets import Images, draw
from gan.data.store import Store, StoreError
from gan.data.stream import Stream
from gan.data.triples import Glyphs, split_groups
from gan.run.saves import GRACE

CPU = torch.device("cpu")


@pytest.fixture
def glyphs(glyph_store):
    return Glyphs(Store(glyph_store), references=2)


@pytest.fixture
def images(glyph_store):
    return Images(Store(glyph_store), label="style")


def rows_of(stream, count):
    return np.concatenate([stream.plan(position).images["real"] for position in range(count)])


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.row("L6", "the order of samples: a function of (seed, epoch) alone")
def test_an_epoch_visits_every_sample_once_and_epochs_differ(images):
    stream = Stream(images, 7, seed=3, device=CPU, keys=["real"])
    count = len(images)
    rows = rows_of(stream, 2 * count // 7 + 1)
    assert sorted(rows[:count]) == list(range(count))
    assert sorted(rows[count : 2 * count]) == list(range(count))
    assert not np.array_equal(rows[:count], rows[count : 2 * count])


@pytest.mark.row("L4", "the last partial batch: none in training, nothing left out in evaluation")
def test_batches_are_full_across_an_epochs_end(images, tried):
    stream = Stream(images, 64, seed=0, device=CPU, keys=["real"])
    assert all(len(stream.plan(position).images["real"]) == 64 for position in range(20))
    tried(20)


@pytest.mark.row("L6")
def test_order_is_a_function_of_seed_and_position_alone(images):
    first = Stream(images, 8, seed=1, device=CPU, keys=["real", "label"])
    batches = [next(first) for _ in range(5)]
    second = Stream(images, 8, seed=1, device=CPU, keys=["real", "label"], position=3)
    assert torch.equal(next(second)["real"], batches[3]["real"])
    assert torch.equal(next(second)["label"], batches[4]["label"])
    other = Stream(images, 8, seed=2, device=CPU, keys=["real"])
    assert not torch.equal(next(other)["real"], batches[0]["real"])
    for stream in (first, second, other):
        stream.close()


@pytest.mark.row("L6")
def test_processes_see_disjoint_shares_of_the_same_batches(images, tried):
    whole = Stream(images, 8, seed=0, device=CPU, keys=["real"])
    shares = [
        Stream(images, 8, seed=0, device=CPU, keys=["real"], rank=r, size=4) for r in range(4)
    ]
    for position in range(50):
        together = np.concatenate([share.plan(position).images["real"] for share in shares])
        assert np.array_equal(together, whole.plan(position).images["real"])
    tried(50)


@pytest.mark.row("L6")
@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_triples_are_the_batch_of_one_process(glyphs, size, tried):
    """Drawn references too, over the end of an epoch."""
    keys = ["prototype", "reference", "target", "style", "character"]
    whole = Stream(glyphs, 12, seed=0, device=CPU, keys=keys)
    shares = [Stream(glyphs, 12, 0, CPU, keys, rank=rank, size=size) for rank in range(size)]
    for position in range(len(glyphs) // 12 + 2):
        plan, parts = whole.plan(position), [share.plan(position) for share in shares]
        for key, rows in plan.images.items():
            assert np.array_equal(np.concatenate([part.images[key] for part in parts]), rows)
        for key, values in plan.fields.items():
            assert np.array_equal(np.concatenate([part.fields[key] for part in parts]), values)
    tried(position + 1)


def numpys():
    return np.random.get_state()[1].copy()  # noqa: NPY002 - the generator that users draw from


@pytest.mark.row("L8", "the random state: untouched by data")
def test_global_random_state_is_untouched(images):
    before = torch.get_rng_state(), numpys()
    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"])
    next(stream)
    stream.close()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], numpys())


@pytest.mark.row("L3", "too few samples: refused with the numbers")
def test_too_few_samples_are_refused_with_both_numbers(images):
    with pytest.raises(
        ValueError, match=r"trainer\.batch_size=1000 needs as many samples.*gives 280"
    ):
        Stream(images, 1000, seed=0, device=CPU, keys=["real"])


# -- content ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", ["on", "off"])
def test_bytes_become_floats_of_the_right_sample(glyph_store, resident):
    dataset = Images(Store(glyph_store), label="style", resident=resident)
    stream = Stream(dataset, 8, seed=0, device=CPU, keys=["real", "label"])
    for _ in range(5):  # more batches than there are buffers
        position = stream.position
        batch, plan = next(stream), stream.plan(position)
        stored = np.empty((8, *dataset.store.shape), dtype=np.uint8)
        dataset.store.read(plan.images["real"], stored)
        expected = torch.from_numpy(stored).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(batch["real"], expected, rtol=0, atol=1e-6)
        assert batch["label"].tolist() == list(dataset.store.fields["style"][plan.images["real"]])
    stream.close()


def test_a_delivered_batch_keeps_its_values(images):
    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"])
    first = next(stream)["real"]
    kept = first.clone()
    for _ in range(8):
        next(stream)
    assert torch.equal(first, kept)
    stream.close()


@pytest.mark.row("L7", "augmentation: a function of (seed, epoch, index) alone")
def test_flips_mirror_whole_samples_for_half_of_them(glyph_store):
    store = Store(glyph_store)
    plain = Stream(Images(store), 256, seed=0, device=CPU, keys=["real"])
    mirrored = Stream(Images(store, flip=True), 256, seed=0, device=CPU, keys=["real"])
    a, b = next(plain)["real"], next(mirrored)["real"]
    flips = [not torch.equal(x, y) for x, y in zip(a, b, strict=True)]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) or torch.equal(x.flip(-1), y)
    assert 64 < sum(flips) < 192
    plain.close()
    mirrored.close()


def test_only_keys_that_are_read_are_sent(glyphs):
    stream = Stream(glyphs, 8, seed=0, device=CPU, keys=["target", "style"])
    assert set(next(stream)) == {"target", "style"}
    stream.close()


def test_an_error_in_the_thread_reaches_the_reader(images):
    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"])

    def broken(*_):
        raise StoreError("block 3 is damaged")

    stream.dataset.plan = broken
    with pytest.raises(StoreError, match="block 3 is damaged"):
        next(stream)
    stream.close()


@pytest.mark.row("L7")
def test_draws_are_uniform_and_differ_by_purpose_epoch_and_seed():
    indices = np.arange(100_000)
    numbers = draw(0, 0, indices, "a")
    shares = np.bincount((numbers % np.uint64(10)).astype(int), minlength=10) / len(indices)
    assert np.allclose(shares, 0.1, atol=0.005)
    for other in (draw(1, 0, indices, "a"), draw(0, 1, indices, "a"), draw(0, 0, indices, "b")):
        assert (numbers == other).mean() < 1e-3
        assert abs(np.corrcoef(numbers.astype(float), other.astype(float))[0, 1]) < 0.02


# -- glyph triples ---------------------------------------------------------------------------------


def test_a_reference_is_never_the_target_and_always_of_its_style(glyphs):
    store, seen = glyphs.store, set()
    for epoch in range(500):  # 1e5 draws and more
        plan = glyphs.plan(0, epoch, np.arange(len(glyphs)))
        target, reference = plan.images["target"], plan.images["reference"]
        assert (store.fields["style"][target][:, None] == store.fields["style"][reference]).all()
        characters = store.fields["character"]
        assert (characters[target][:, None] != characters[reference]).all()
        assert np.isin(characters[reference], glyphs.split.train).all()
        seen |= set(characters[reference[characters[target] == glyphs.split.train[0]]].ravel())
    assert seen == set(glyphs.split.train) - {glyphs.split.train[0]}  # any other training character


def test_prototype_and_target_are_the_same_character_and_labels_count_the_split(glyphs):
    plan = glyphs.plan(0, 0, np.arange(len(glyphs)))
    store = glyphs.store
    prototype, target = plan.images["prototype"], plan.images["target"]
    assert (store.fields["character"][prototype] == store.fields["character"][target]).all()
    assert (store.fields["style"][prototype] == glyphs.prototype).all()
    assert (glyphs.styles.train[plan.fields["style"]] == store.fields["style"][target]).all()
    assert (glyphs.split.train[plan.fields["character"]] == store.fields["character"][target]).all()
    assert sorted(set(plan.fields["style"])) == list(range(glyphs.facts["styles"]))


def test_one_epoch_visits_every_training_pair_once(glyphs):
    stream = Stream(glyphs, 4, seed=0, device=CPU, keys=["target"])
    rows = np.concatenate([stream.plan(p).images["target"] for p in range(-(-len(glyphs) // 4))])
    expected = glyphs.rows[np.ix_(glyphs.styles.train, glyphs.split.train)].ravel()
    assert sorted(rows[: len(glyphs)]) == sorted(expected)


def test_no_held_out_identity_takes_any_role(glyphs):
    held_styles = {*glyphs.styles.validation, *glyphs.styles.test}
    held_characters = {*glyphs.split.validation, *glyphs.split.test}
    for epoch in range(5):
        for rows in glyphs.plan(0, epoch, np.arange(len(glyphs))).images.values():
            assert not held_styles & set(glyphs.store.fields["style"][rows].ravel())
            assert not held_characters & set(glyphs.store.fields["character"][rows].ravel())
    rows, _ = glyphs.labelled()
    assert not held_styles & set(glyphs.store.fields["style"][rows])
    assert not held_characters & set(glyphs.store.fields["character"][rows])


def test_shown_cells_hold_what_their_names_say(glyphs):
    shown = glyphs.shown(["target"])
    styles, characters = glyphs.store.fields["style"], glyphs.store.fields["character"]
    assert len(shown) == 4
    for name, plan in shown.items():
        part = glyphs.styles.train if "seen-style" in name else glyphs.styles.test
        assert np.isin(styles[plan.images["target"]], part).all()
        part = glyphs.split.train if "seen-character" in name else glyphs.split.test
        assert np.isin(characters[plan.images["target"]], part).all()
        reference, target = characters[plan.images["reference"]], characters[plan.images["target"]]
        assert (reference != target[:, None]).all()


def test_families_are_never_divided_and_parts_are_disjoint():
    for seed in range(50):
        groups = np.repeat(np.arange(18), [5, 4, 3, 3, 2, 2, 2, *[1] * 11])
        split = split_groups(groups, np.arange(len(groups)), seed)
        parts = [set(split.train), set(split.validation), set(split.test)]
        assert sum(map(len, parts)) == len(groups) == len(set.union(*parts))
        families = [set(groups[list(part)]) for part in parts]
        assert sum(map(len, families)) == 18
        assert len(parts[2]) in (5, 6, 7)
        assert len(families[2]) >= 3


@pytest.mark.parametrize("count", [8, 12, 20, 30])
@pytest.mark.parametrize("sizes", [[1], [2], [5], [1, 1, 9], [1, 2, 3, 40]])
def test_eight_families_of_any_size_can_be_split(count, sizes):
    groups = np.repeat(np.arange(count), np.resize(sizes, count))
    for seed in range(20):
        split = split_groups(groups, np.arange(len(groups)), seed)
        parts = split.train, split.validation, split.test
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
        families = [set(groups[part]) for part in parts]
        assert sum(map(len, families)) == count
        assert len(families[1]) >= 1
        assert len(families[2]) >= 2
        assert len(split.train) >= 0.6 * len(groups)
    drawn = {tuple(split_groups(groups, np.arange(len(groups)), seed).test) for seed in range(20)}
    assert len(drawn) > 1 or len(set(sizes)) == 4  # where only three are small, it is those


def test_too_few_families_are_refused():
    for groups, what in (([0, 0, 1, 1], "2 families"), (range(7), "7 characters")):
        with pytest.raises(StoreError, match=f"{what} are too few .*at least 8 are needed"):
            split_groups(np.array(groups), np.arange(len(groups)), 0, what.split()[1])


def test_a_held_out_style_without_enough_references_is_refused_by_name(glyphs):
    held_out = glyphs.styles.test[0]
    glyphs.rows[held_out, glyphs.split.train[1:]] = -1
    with pytest.raises(StoreError, match=f"{glyphs.style_names[held_out]}' has 1 usable training"):
        glyphs._reference_table()


def test_a_style_with_one_usable_character_is_refused_by_name(tmp_path):
    from gan.data.store import build

    class Sparse(TinyGlyphs):
        def __iter__(self):
            for record in super().__iter__():
                if record.fields["style"] != 3 or record.fields["character"] == 0:
                    yield record

        def fingerprint(self):
            return "sparse"

    build(Sparse(), tmp_path / "sparse.lmdb")
    splits = (Glyphs(Store(tmp_path / "sparse.lmdb"), split=split) for split in range(20))
    with pytest.raises(StoreError, match="style 'style03' has . usable training characters"):
        list(splits)  # in some split the style is trained on


def test_unknown_prototype_and_label_are_refused_by_name(glyph_store):
    with pytest.raises(StoreError, match=r"data\.prototype=nobody is no style"):
        Glyphs(Store(glyph_store), prototype="nobody")
    with pytest.raises(StoreError, match=r"data\.label=weight is no field"):
        Images(Store(glyph_store), label="weight")


# -- one style, few characters, and the names that other recipes read


def test_one_style_is_all_training_and_characters_stay_held_out(glyph_store):
    whole = Glyphs(Store(glyph_store))
    for style in (whole.styles.train[0], whole.styles.test[0]):
        name = whole.style_names[style]
        glyphs = Glyphs(Store(glyph_store), style=name, shots=5)
        assert glyphs.facts == {"styles": 1, "characters": 5, "classes": 1}
        assert len(glyphs) == 5
        assert set(glyphs.split.train) <= set(whole.split.train)
        for part in ("validation", "test"):
            held_out = glyphs.held_out(part)
            wanted = getattr(whole.split, part)
            assert set(held_out.images["target"]) == set(whole.rows[style, wanted])
            seen = glyphs.rows[style, glyphs.split.train]
            assert np.isin(held_out.images["reference"], seen).all()
        assert set(glyphs.shown({"target"})) == {
            "seen-style-seen-character",
            "seen-style-new-character",
        }


def test_the_prototype_cannot_be_the_style_to_learn(glyph_store):
    with pytest.raises(StoreError, match=r"data\.style=style00 is the prototype itself"):
        Glyphs(Store(glyph_store), style="style00")
    with pytest.raises(StoreError, match=r"data\.style=nobody is no style"):
        Glyphs(Store(glyph_store), style="nobody")


def test_translation_reads_the_standard_font_and_the_style(glyph_store):
    glyphs = Glyphs(Store(glyph_store), style="style05")
    indices = np.arange(len(glyphs))
    plan = glyphs.plan(0, 0, indices)
    assert np.array_equal(plan.images["input"], plan.images["prototype"])
    assert np.array_equal(plan.images["real_b"], plan.images["target"])
    style, character = np.divmod(plan.images["real_a"], 20)
    assert (style == glyphs.prototype).all()
    assert np.isin(character, glyphs.split.train).all()
    again = [glyphs.plan(0, epoch, indices).images["real_a"] for epoch in range(60)]
    same = np.mean([a == plan.images["input"] for a in again])
    assert same == pytest.approx(1 / len(glyphs.split.train), rel=0.5)  # unrelated to the target


def test_what_references_show_comes_with_each_sample_in_the_standard_font(glyph_store):
    glyphs = Glyphs(Store(glyph_store), references=2)
    plans = [glyphs.plan(0, epoch, np.arange(len(glyphs))) for epoch in range(2)]
    plans += [glyphs.held_out("test"), *glyphs.shown({"target"}).values()]
    for plan in plans:
        (standard, character), (style, same) = (
            np.divmod(plan.images[name], 20) for name in ("shown", "reference")
        )
        assert character.shape == (len(plan.images["target"]), 2)
        assert np.array_equal(character, same)
        assert (standard == glyphs.prototype).all()
        assert not (style == glyphs.prototype).any()


def test_a_mate_and_another_style_come_with_each_sample(glyph_store):
    """The mate is no reference, in both fonts; the other style draws target, mate, references."""
    glyphs = Glyphs(Store(glyph_store), references=2)
    styles, characters, own, mates, others = glyphs.styles.train, glyphs.split.train, [], [], []
    for epoch in range(4):
        images = glyphs.plan(0, epoch, np.arange(len(glyphs))).images
        style, character = np.divmod(images["target"], 20)
        (standard, drawn), (mate, same) = np.moveaxis(np.divmod(images["mate"], 20), 2, 1)
        assert (standard == glyphs.prototype).all()
        assert np.array_equal(drawn, style)
        assert np.array_equal(mate, same)
        reference = images["reference"] % 20
        assert not (mate[:, None] == reference).any()
        other, wanted = np.divmod(images["other"], 20)
        assert (other == other[:, :1]).all()
        assert np.array_equal(wanted, np.column_stack([character, mate, reference]))
        own, mates, others = [*own, character == mate], [*mates, *mate], [*others, *other[:, 0]]
    assert {*mates} == {*characters}
    assert {*others} == {*styles}
    counts = np.unique(others, return_counts=True)[1] / len(others)
    assert counts == pytest.approx(1 / len(styles), rel=0.35)
    assert np.mean(own) == pytest.approx(2 / (len(characters) - 1), rel=0.3)  # it was a reference


def test_a_glyph_that_the_other_style_lacks_is_the_samples_own(glyph_store):
    glyphs = Glyphs(Store(glyph_store))
    first, *lacking = glyphs.styles.train
    glyphs.rows[np.ix_(lacking, glyphs.split.train[::5])] = -1  # as if they lacked some
    whole = np.flatnonzero(glyphs.pairs[:, 0] == first)
    images = glyphs.plan(0, 0, whole).images
    own = np.column_stack([images["target"], images["mate"][:, 1], images["reference"]])
    same = (images["other"] == own).all(1)
    lacks = np.isin(own % 20, glyphs.split.train[::5]).any(1)
    assert (images["other"] >= 0).all()
    assert same[lacks].all()
    assert not same[~lacks].all()


def test_labels_are_a_folders_classes_or_any_integer_field(glyph_store):
    store = Store(glyph_store)
    assert Images(store).facts == {}  # no field `label`
    styles = Images(store, label="style")
    assert styles.facts == {"classes": 14}
    rows, fields = styles.labelled()
    assert np.array_equal(fields["label"], store.fields["style"][rows])
    assert Images(store, label="style").plan(0, 0, np.array([3])).fields.keys() == {"label"}


# -- when the reading thread is in trouble ---------------------------------------------------------


@pytest.mark.row("L1", "the error reaches the reader with the batch and the store, <= 5 s")
def test_an_error_in_the_thread_says_which_batch_and_store(images, tried):
    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"], position=5)
    read = stream.dataset.store.read
    try:
        stream.dataset.store.read = lambda rows, out: (_ for _ in ()).throw(OSError("gone"))
        with pytest.raises(OSError, match="gone") as caught:
            next(stream)
    finally:
        stream.dataset.store.read = read
    assert caught.value.__notes__ == [f"while batch 5 was read from {images.store.path}"]
    stream.close()
    tried(1)


@pytest.mark.row(
    "L2", "a time-out that shows where the reading thread stands; the default is not 0"
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_stalled_thread_ends_the_wait_with_its_stack(images, asked, monkeypatch, tried):
    assert stream_module.TIMEOUT > 0
    monkeypatch.setattr(stream_module, "TICK", 0.01)
    monkeypatch.setattr(stream_module, "SHORT" if asked else "TIMEOUT", 0.1)
    stalled = threading.Event()
    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"], asked=lambda: asked)
    stream._send = lambda *given: stalled.wait()
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no batch came from .* for 0\.1 s(.|\n)*stalled\.wait"):
        next(stream)
    assert time.monotonic() - begun < 2
    stalled.set()
    stream.close()
    tried(1)


def test_a_stop_is_waited_for_from_when_it_comes(images, monkeypatch):
    """Not from when the wait began: the batch of a slow disk may be nearly there."""
    assert 10 <= stream_module.SHORT < GRACE
    monkeypatch.setattr(stream_module, "TICK", 0.01)
    monkeypatch.setattr(stream_module, "SHORT", 0.5)
    calls, come = [], threading.Event()

    def asked():
        calls.append(1)
        if len(calls) == 52:
            come.set()
        return len(calls) > 50  # 0.5 s after the wait began

    stream = Stream(images, 8, seed=0, device=CPU, keys=["real"], asked=asked)
    send = stream._send
    stream._send = lambda *given: come.wait() and send(*given)
    assert len(next(stream)["real"]) == 8
    assert len(calls) >= 52
    stream.close()


CHILD = """
import torch
from gan.data.datasets import Images
from gan.data.store import Store
from gan.data.stream import Stream
images = Images(Store({path!r}))
for batch in Stream(images, 8, seed=0, device=torch.device("cpu"), keys=["real"]):
    print(len(batch["real"]))
    break
"""


@pytest.mark.slow
@pytest.mark.row("L9", "leaving the loop in mid-epoch ends the process: status 0, <= 5 s")
def test_a_process_that_leaves_the_loop_ends(glyph_store, tried):
    command = [sys.executable, "-c", CHILD.format(path=str(glyph_store))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout.strip(), done.stderr) == ("8", "")
    tried(1)


@pytest.mark.row("L5", "1,000 updates of 5 a step over epochs of 8 samples, batch 4")
def test_tiny_epochs_never_run_dry(images, monkeypatch, tried):
    monkeypatch.setattr(type(images), "__len__", lambda self: 8)
    stream = Stream(images, 4, seed=0, device=CPU, keys=["real"])
    for position in range(0, 1000, 2):
        pair = np.concatenate([stream.plan(p).images["real"] for p in (position, position + 1)])
        assert sorted(pair) == list(range(8))
    tried(1000)


def test_names_of_the_images_in_a_batch(images):
    stream = Stream(images, 4, seed=0, device=CPU, keys=["real"])
    names = stream.keys_at(7)
    rows = stream.plan(7).images["real"]
    assert names == {"real": [images.store.keys[row] for row in rows]}
