"""The whole report on a W-Net: which rows it has, what each is shown, and what it says."""

from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gan.data.store import Store
from gan.data.triples import Glyphs
from gan.font.ink import inked
from gan.metrics.baselines import baselines
from gan.metrics.glyph_evaluation import GlyphEvaluation, cells_of
from gan.metrics.glyph_judges import Judged
from gan.metrics.glyph_report import Adaptation, Learnt, glyph_report
from gan.metrics.glyphs import faithful, shuffled_reference
from gan.metrics.judges import Judge
from gan.metrics.scores import score, score_pairs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(glyph_store):
    return Glyphs(Store(glyph_store))


@pytest.fixture(scope="module")
def judge(dataset):
    """Reads an image as the glyph of the store that it is nearest to."""
    cells, characters = cells_of(dataset)
    styles = len(dataset.rows)
    known = cells.ink(np.arange(styles)[:, None], np.arange(len(characters))).flatten(2)
    known = known.flatten(0, 1)

    def network(image):
        nearest = torch.cdist((1 - image).flatten(1) / 2, known).argmin(1)
        style, place = nearest // len(characters), nearest % len(characters)
        one_hot = torch.nn.functional.one_hot
        return {
            "style": one_hot(style, styles),
            "character": one_hot(torch.from_numpy(characters)[place], len(dataset.characters)),
        }

    return Judge(network, {"character": 0.97, "style": 0.9})


@pytest.fixture(scope="module")
def copied(dataset, judge):
    """The report on a generator that copies the prototype."""
    return glyph_report({"raw": lambda prototype, *_: prototype}, dataset, judge, CPU)


def oracle(dataset):
    """Draws the truth: the glyph of the style that has these references, of the prototype's kind.

    It also notes how many references it was shown.
    """
    cells, _ = cells_of(dataset)
    prototypes = cells.prototypes(np.arange(cells.glyphs.shape[1])).flatten(1)
    known = cells.ink(np.arange(len(cells.glyphs))[:, None], cells.references).flatten(2)  # [S, R]
    shown = []

    def draw(prototype, references, _):
        shown.append(references.shape[1])
        character = torch.cdist(prototype.flatten(1), prototypes).argmin(1)
        distance = torch.cdist(references[:, 0].flatten(1), known.flatten(0, 1))
        style = distance.argmin(1) // known.shape[1]
        return cells.ink(style.numpy(), character.numpy())

    return draw, shown


def test_an_oracle_is_perfect_until_a_control_takes_its_input_away(dataset, judge):
    draw, shown = oracle(dataset)
    report = glyph_report({"raw": lambda p, *_: p, "ema": draw}, dataset, judge, CPU)
    numbers = report.numbers
    for cell in ("SFSC", "SFUC", "UFSC", "UFUC"):
        assert numbers[f"{cell}/l1"] == pytest.approx(0, abs=1e-6)
        assert numbers[f"{cell}/content"] == numbers[f"{cell}/style"] == 1
        assert numbers[f"4_references/{cell}/l1"] == pytest.approx(0, abs=1e-6)
        assert numbers[f"raw_weights/{cell}/style"] == 0  # a copy of the prototype
        assert numbers[f"wrong_prototype/{cell}/content"] == 0
        assert numbers[f"wrong_prototype/{cell}/followed"] == 1
        assert numbers[f"wrong_prototype/{cell}/style"] == 1
        assert numbers[f"shuffled_reference/{cell}/style"] == 0
        assert numbers[f"shuffled_reference/{cell}/content"] == 1
    assert "read, as it should be, in 100.0% of UFUC" in report.text
    assert set(shown) == {1, 4}
    assert report.facts["claim"] == "completes"
    (lacking,) = [
        test["what"] for test in report.facts["tests"]["generalises"] if not test["holds"]
    ]
    assert lacking == "fonts of 6 families or more (UFUC)"
    assert "The style judge is right about 90.0%" in report.text


def test_a_generator_that_never_reads_its_prototype_does_not_follow_it(dataset, judge):
    cells, _ = cells_of(dataset)
    same = cells.ink(np.array([1]), np.array([0]))
    report = glyph_report({"raw": lambda p, *_: same.expand_as(p)}, dataset, judge, CPU)
    assert report.numbers["wrong_prototype/UFUC/followed"] == 0
    assert not [name for name in report.numbers if "followed" in name and "wrong" not in name]


def test_a_copy_of_the_prototype_claims_nothing(copied):
    assert copied.facts["claim"] == "nothing"
    rows = copied.facts["rows"]
    ours, copy = (rows[row]["UFUC"]["l1"] for row in ("W-Net", "prototype copy"))
    np.testing.assert_array_equal(ours["by_font"], copy["by_font"])
    assert "W-Net, raw weights" not in rows
    assert "of one family" not in copied.text


def test_the_report_keeps_what_a_number_depends_on(copied, dataset):
    split, protocol = copied.facts["split"], copied.facts["protocol"]
    parts = [set(split["styles"][part]) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(dataset.style_names) - 1
    assert protocol["prototype"] not in set.union(*parts)
    assert set(protocol["reference_characters"]) <= set(split["characters"]["train"])
    cell = copied.facts["rows"]["nearest font *"]["UFUC"]
    assert cell["fonts"] == split["styles"]["test"]
    assert len(cell["l1"]["by_font"]) == len(cell["fonts"])
    low, high = cell["l1"]["interval"]
    assert low <= cell["l1"]["mean"] <= high


def test_the_rows_that_see_more_are_marked(copied):
    marked = {row for row in copied.facts["rows"] if row.endswith("*")}
    assert len(marked) == 6
    assert not any(row.startswith(("W-Net", "prototype", "blank")) for row in marked)


class Pupil(torch.nn.Module):
    """Stands for a generator that has learnt references: it draws what it was taught."""

    def __init__(self, taught):
        super().__init__()
        self.taught = taught  # [K, 1, H, W]

    def forward(self, prototypes, references):
        assert references.shape[:2] == (len(prototypes), len(self.taught))
        return self.taught.mean(0).expand_as(prototypes)


@pytest.fixture
def adaptation():
    """Generators learn what they were told, at once, and note it."""
    asked = []

    def learn(shown, references, characters):
        asked.append((torch.cat([shown, references]).numpy().tobytes(), *characters))
        return Pupil((shown + 3 * references) / 4)

    return Adaptation(learn, {"steps": 7, "enough": 0.125, "asked": asked})


def test_every_choice_of_references_is_learnt_once_and_drawn_where_it_belongs(
    dataset, judge, adaptation
):
    cells, characters = cells_of(dataset)
    names = [dataset.characters[character] for character in characters]
    learnt, asked = Learnt(cells, names, adaptation, CPU), adaptation.settings["asked"]
    measure = Judged(judge, characters, CPU)
    plain = score(cells, lambda prototype, *_: prototype, measure=measure)
    ways = [f"W-Net{way}" for way in ("", ", as a font", ", 4 references", ", shuffled reference")]
    rows = learnt.rows(dict.fromkeys(ways, plain), 4, measure)
    assert [*rows] == [way.replace("W-Net", "W-Net, adapted") for way in ways]
    for row, many, control in (
        ("W-Net, adapted", 1, faithful),
        ("W-Net, adapted, 4 references", 4, faithful),
        ("W-Net, adapted, shuffled reference", 1, shuffled_reference),
    ):
        for cell in ("UFSC", "UFUC"):
            pairs = cells.pairs(cell, many)
            seen = control(cells, pairs)
            shown, learnt_by = (
                cells.prototypes(seen.references),
                cells.ink(seen.styles[:, None], seen.references),
            )
            taught = (shown.mean(1) + 3 * learnt_by.mean(1)) / 4
            torch.testing.assert_close(learnt(seen), taught, rtol=0, atol=1e-6)
            off = (taught - cells.ink(pairs.styles, pairs.characters)).abs().mean((1, 2, 3)).numpy()
            means = [off[pairs.styles == style].mean() for style in np.unique(pairs.styles)]
            assert rows[row].cells[cell].mean("l1") == pytest.approx(np.mean(means))
    for cell in ("UFSC", "UFUC"):
        as_font = score_pairs(cells, lambda pairs: inked(learnt(pairs)), among=[cell]).cells[cell]
        assert rows["W-Net, adapted, as a font"].cells[cell].mean("l1") == as_font.mean("l1")
    assert len(asked) == len(set(asked))
    every = [cells.pairs(cell, many) for cell in ("UFSC", "UFUC") for many in (1, 4)]
    choices = {
        (style, *references)
        for pairs in every
        for style, references in zip(pairs.styles, pairs.references.tolist(), strict=True)
    }
    assert len(asked) == len(choices)  # and none for the control, whose styles are the same
    assert {tuple(shows) for _, *shows in asked} == {
        tuple(names[reference] for reference in references) for _, *references in choices
    }


def test_the_verdict_is_on_the_adapted_generator_where_there_is_one(dataset, judge, adaptation):
    blank = {"raw": lambda prototype, *_: torch.zeros_like(prototype)}
    report = glyph_report(blank, dataset, judge, CPU, adaptation)
    rows = report.facts["rows"]
    ours, plain = rows["W-Net, adapted"], rows["W-Net"]
    for cell in ("SFSC", "SFUC"):  # styles that it was trained on need no adaptation
        assert ours[cell] == plain[cell]
    for cell in ("UFSC", "UFUC"):
        assert ours[cell]["l1"]["mean"] != plain[cell]["l1"]["mean"]
    assert report.numbers["adapted/UFUC/l1"] == ours["UFUC"]["l1"]["mean"]
    assert "adapted_shuffled_reference/UFUC/l1" in report.numbers
    assert "adapted_as_a_font/UFUC/l1" in report.numbers
    assert "as a font: drawn as before" in report.text
    assert report.facts["adaptation"]["steps"] == 7
    assert report.facts["adaptation"]["enough"] == 0.125
    assert report.verdict.startswith("When it has learnt its references by heart: ")
    assert "W-Net, adapted minus the row on UFUC" in report.text
    copy = rows["prototype copy"]["UFUC"]["l1"]["mean"]
    ahead = {test["what"]: test["numbers"] for test in report.facts["tests"]["transfers"]}
    difference = float(ahead["ahead of prototype copy on L1 (UFUC)"].split()[0])
    assert difference == pytest.approx(ours["UFUC"]["l1"]["mean"] - copy, abs=1e-4)
    grey = {"raw": lambda prototype, *_: 0.8 * prototype}
    alone = glyph_report(grey, dataset, judge, CPU)
    cells, _ = cells_of(dataset)
    as_font = score(cells, lambda prototype, *_: inked(0.8 * prototype), among=["UFUC"])
    told = alone.facts["rows"]["W-Net, as a font"]["UFUC"]["l1"]["mean"]
    assert told == as_font.cells["UFUC"].mean("l1")
    assert told != alone.facts["rows"]["W-Net"]["UFUC"]["l1"]["mean"]
    assert alone.facts["adaptation"] is None
    assert "adapted" not in alone.text
    assert not alone.verdict.startswith("When")


def test_a_judge_knows_characters_by_the_numbers_of_the_store(dataset, judge):
    cells, characters = cells_of(dataset)
    pairs = cells.pairs("UFUC")
    truth = cells.ink(pairs.styles, pairs.characters)
    found = Judged(judge, characters, CPU)(cells, pairs, truth)
    assert found["content"].min() == found["style"].min() == 1
    shifted = Judged(judge, np.roll(characters, 1), CPU)(cells, pairs, truth)
    assert shifted["content"].max() == 0


def test_validation_is_judged_in_training_and_only_there(dataset, judge):
    cells, _ = cells_of(dataset)
    asked, recipe = [], SimpleNamespace(samples=lambda draw, batch: {"generated": draw(batch)})
    draw, shown = oracle(dataset)

    def truth(batch):
        ink = draw(*((1 - batch[name]) / 2 for name in ("prototype", "reference", "shown")))
        return 1 - 2 * ink

    def measured(generator):
        return GlyphEvaluation(recipe, dataset, CPU, lambda: asked.append(1) or judge).measure(
            generator
        )

    perfect = measured(truth)
    assert perfect["validation_content"] == perfect["validation_style"] == 1
    assert shown == [1]
    prototype = measured(lambda batch: batch["prototype"])
    assert (prototype["validation_content"], prototype["validation_style"]) == (1, 0)
    copies = score(cells, lambda prototype, *_: prototype).cells
    wrong = [cell.mean("l1") for name, cell in copies.items() if name != "validation"]
    for metric in ("l1", "l1_per_ink", "rmse", "ssim", "sharpness"):
        assert prototype[f"validation_{metric}"] == pytest.approx(copies["validation"].mean(metric))
    assert min(abs(prototype["validation_l1"] - l1) for l1 in wrong) > 1e-4
    reference = measured(lambda batch: batch["reference"][:, 0])
    assert (reference["validation_content"], reference["validation_style"]) == (0, 1)
    assert len(asked) == 3
    unjudged = GlyphEvaluation(recipe, dataset, CPU)
    kept = {name: value for name, value in perfect.items() if name in unjudged.better}
    assert unjudged.measure(truth) == kept
    assert set(perfect) - set(kept) == {"validation_content", "validation_style"}


def test_the_last_word_has_the_judges_shares_and_doubts(dataset, judge):
    recipe = SimpleNamespace(samples=lambda draw, batch: {"generated": draw(batch)})
    evaluation = GlyphEvaluation(recipe, dataset, CPU, lambda: judge)
    evaluation.baselines = baselines(evaluation.cells, ["UFUC"])
    said = evaluation.report(itemgetter("prototype"))
    assert "judges read rightly: content 100.0% (of held-out real glyphs: 97.0%), style 0" in said
    assert "The style judge is right about 90.0%" in said
    assert "The content judge" not in said
    values = evaluation.by_font(itemgetter("prototype"))["UFUC"].values()
    assert {(font["content"], font["style"]) for font in values} == {(1, 0)}
