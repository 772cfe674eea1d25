"""References beside their characters: what the style encoder sees, wherever it is shown any."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import mse_loss

import gan
from gan import runs
from gan.build import build
from gan.commands import main, sample
from gan.data.store import Store
from gan.data.triples import Glyphs
from gan.font.prototypes import trained_on
from gan.metrics.glyph_evaluation import GlyphEvaluation, cells_of
from gan.metrics.glyph_report import PAIRED, Adaptation, glyph_report, writing
from gan.metrics.glyphs import CONTROLS
from gan.metrics.judges import Judge
from gan.metrics.report import write
from gan.metrics.scores import score
from gan.orientations import ORIENTATIONS, oriented
from gan.recipe import detached
from gan.references import paired
from gan.styles import Relatives, accuracy, known
from gan.trained import export
from gan.trained.rows import pooled
from gan.trained.sheets import sheets

CPU = torch.device("cpu")
TOLD = "generator.paired=true"


def watched(module):
    """What a module is given from now on, call by call."""
    seen = []
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    return seen


def read_of(trainer):
    """The first batch, and the standard font's glyphs [B, K, C, H, W] of its references."""
    dataset, images = trainer.stream.dataset, trainer.stream.images
    batch, rows = next(trainer.stream), trainer.stream.plan(0).images["reference"]
    trainer.stream.close()
    character = dataset.store.fields["character"][rows]  # [B, K]
    shown = images(dataset.rows[dataset.prototype, character].reshape(-1))
    return batch, shown.view_as(batch["reference"])


def require_told(cells, references):
    """References [N, K, 2, H, W], ink of training characters, each beside its own character."""
    assert references.shape[2] == 2
    own, standard = references.flatten(0, 1)[:, :, None].unbind(1)
    characters = cells.character_split.train
    every = cells.ink(np.arange(len(cells.glyphs))[:, None], characters)  # [S, N, 1, H, W]
    exact = "donot_use_mm_for_euclid_dist"
    flat = every.flatten(0, 1).flatten(1)
    off, place = torch.cdist(own.flatten(1), flat, compute_mode=exact).min(1)
    assert off.max() < 1e-4
    expected = cells.prototypes(characters[(place % len(characters)).numpy()])
    torch.testing.assert_close(standard, expected, rtol=0, atol=1e-6)
    assert len(own.unique(dim=0)) > 1


class Recorder(nn.Module):
    """Stands for a generator: copies the prototype, and keeps what it is given, as ink."""

    def __init__(self, paired=True):
        super().__init__()
        self.paired, self.seen = paired, []

    def forward(self, prototype, references):
        self.seen.append(((1 - prototype) / 2, (1 - references) / 2))
        return prototype


@pytest.fixture(scope="module")
def dataset(glyph_store):
    return Glyphs(Store(glyph_store))


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True])
def test_what_references_show_is_read_only_by_a_paired_generator(tiny, told):
    trainer = build(tiny("wnet", f"generator.paired={told}", "data.references=2"))
    batch, shown = read_of(trainer)
    more = {"shown"} if told else set()
    assert set(batch) == {"prototype", "reference", "target", "style", "character"} | more
    if told:
        assert torch.equal(batch["shown"], shown)
        standard = trainer.stream.read(trainer.stream.plan(0))["prototype"]
        assert not torch.equal(shown, standard[:, None].expand_as(shown))  # not the target's


CHANGES = {
    "nothing": [],
    "turned": ["turn"],
    "restyled": ["restyle"],
    "mixed": ["mix"],
    "hollow": ["hollow"],
    "spliced and bent": ["splice", "bend"],
    "all": ["turn", "restyle", "mix", "hollow", "splice", "bend"],
}


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_style_encoder_sees_references_beside_their_characters(tiny, changes, many):
    overrides = [f"recipe.{change}=1.0" for change in changes]
    trainer = build(tiny("wnet", TOLD, f"data.references={many}", *overrides))
    raw, shown = read_of(trainer)
    recipe = trainer.recipe
    torch.manual_seed(0)
    batch = recipe.prepare(raw)
    seen = watched(recipe.generator.style_encoder)
    recipe.generate(batch)
    (given,) = seen
    own, standard = given.view(8, many, 2, 16, 16).split(1, 2)
    assert torch.equal(own, batch["reference"])
    ways = [way_of(raw["shown"][n], standard[n]) for n in range(8)]
    assert all((0 in way) != ("turn" in changes) for way in ways)
    restyles = {"restyle", "mix", "hollow"} & {*changes}
    if "turn" in changes and not restyles:
        for n, way in enumerate(ways):
            for name in ("prototype", "target", "reference"):
                assert way & way_of(raw[name][n], batch[name][n])
    if not changes:
        assert torch.equal(own, raw["reference"])
    assert torch.equal(raw["shown"], shown)
    if restyles:
        assert (batch["reference"] != raw["reference"]).flatten(1).any(1).all()


def way_of(before, after):
    """The orientations of an image that another one may be, more than one where it is symmetric."""
    return {way for way in range(ORIENTATIONS) if torch.equal(oriented(before, way), after)}


def test_a_drawn_image_is_encoded_beside_its_own_prototype(tiny):
    trainer = build(tiny("wnet", TOLD, "recipe.turn=0.5"))
    recipe = trainer.recipe
    batch = recipe.prepare(read_of(trainer)[0])
    fakes = recipe.generate(batch)
    seen = watched(recipe.generator.style_encoder)
    terms = recipe.generator_losses(batch, fakes, 0)
    (given,) = seen
    assert torch.equal(given, torch.cat([fakes["image"], batch["prototype"]], 1))
    code = recipe.generator.encode_style(given).code
    torch.testing.assert_close(terms["constant_style"], 5 * mse_loss(code, fakes["style_code"]))


def test_the_discriminator_sees_references_alone(tiny):
    trainer = build(tiny("wnet", TOLD, "recipe.turn=0.5", "recipe.feature_source=discriminator"))
    recipe = trainer.recipe
    batch = recipe.prepare(read_of(trainer)[0])
    fakes = recipe.generate(batch)
    seen = watched(recipe.discriminator.first)
    recipe.discriminator_losses(batch, detached(fakes), 0)
    recipe.generator_losses(batch, fakes, 0)
    assert len(seen) > 3
    for given in seen:
        prototype, _, reference = given.split(1, 1)
        assert torch.equal(prototype, batch["prototype"])
        assert torch.equal(reference, batch["reference"][:, 0])


def test_sheets_in_training_show_references_alone(tiny):
    trainer = build(tiny("wnet", TOLD, "data.references=2"))
    recipe, shown = trainer.recipe.eval(), trainer.monitor.shown
    assert shown
    for batch in shown.values():
        columns = recipe.samples(recipe.generator, batch)
        assert torch.equal(columns["reference"], batch["reference"][:, 0])
        both = torch.cat([batch["reference"], batch["shown"]], 2)
        expected = recipe.generator(batch["prototype"], both)
        assert torch.equal(columns["generated"], expected)
    trainer.stream.close()


def test_a_paired_run_goes_on_as_if_it_had_not_been_stopped(tiny):
    given = TOLD, "recipe.turn=0.5", "recipe.mix=0.5", "average=both"
    whole, first = build(tiny("wnet", *given, "run_dir=whole")), build(tiny("wnet", *given))
    for _ in range(2):
        first.play()
    first.save()
    first.stream.close()
    again = build(tiny("wnet", *given))
    assert again.step == 2
    again.play()
    for _ in range(3):
        whole.play()
    mine, theirs = (run.recipe.state_dict() for run in (again, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    again.stream.close()
    whole.stream.close()


def test_one_style_alone_is_measured_by_references_beside_their_characters(tiny, glyph_store):
    trainer = build(tiny("wnet", TOLD, "data.style=style05"))
    trainer.stream.close()
    seen = watched(trainer.recipe.generator.style_encoder)
    with torch.no_grad():
        trainer.monitor.evaluation.measure(trainer.recipe.generator.eval())
    whole = cells_of(Glyphs(Store(glyph_store)))[0]  # of the same characters
    require_told(whole, (1 - torch.cat(seen)[:, None]) / 2)
    trainer.save()
    assert main(["evaluate", "run"]) == 0
    assert PAIRED in Path("run/evaluation/evaluation.md").read_text()
    assert json.loads(Path("run/evaluation/evaluation.json").read_text())["paired"] is True


# -- measures --------------------------------------------------------------------------------------


def judged(dataset):
    """A judge that reads every image as the first style and character."""

    def network(image):
        counts = {"style": len(dataset.rows), "character": len(dataset.characters)}
        return {name: torch.eye(count)[[0] * len(image)] for name, count in counts.items()}

    return Judge(network, {"character": 0.97, "style": 0.9})


def report_of(dataset, generator, told, adapted=False):
    """The report on a stub, and on the like of it that has learnt, where it is to."""
    learn = Adaptation(lambda *given: generator, {"steps": 1, "enough": 0.1}) if adapted else None
    draws = {"raw": writing(generator, CPU)}
    return glyph_report(draws, dataset, judged(dataset), CPU, learn, told)


@pytest.mark.parametrize("adapted", [False, True])
def test_every_row_of_the_report_is_of_references_beside_their_characters(dataset, adapted):
    generator, cells = Recorder(), cells_of(dataset)[0]
    report = report_of(dataset, generator, True, adapted)
    assert {references.shape[1] for _, references in generator.seen} == {1, 4}
    for many in (1, 4):
        given = [references for _, references in generator.seen if references.shape[1] == many]
        require_told(cells, torch.cat(given))
    assert report.verdict.startswith("Told which characters its references show. ")
    assert ("learnt its references by heart: " in report.verdict) == adapted
    assert PAIRED in report.text
    assert report.facts["protocol"]["paired"]


def test_an_unpaired_generator_is_told_nothing(dataset):
    generator = Recorder(paired=False)
    report = report_of(dataset, generator, False, adapted=True)
    assert {references.shape[2] for _, references in generator.seen} == {1}
    assert "Told" not in report.verdict
    assert PAIRED not in report.text
    assert "paired" not in report.facts["protocol"]


def test_baselines_do_not_depend_on_what_a_generator_is_told(dataset):
    told, plain = (report_of(dataset, Recorder(own), own).facts["rows"] for own in (True, False))
    assert told.keys() == plain.keys()
    for row, cells in plain.items():  # the stub does not look at references either
        for cell, facts in cells.items():
            np.testing.assert_array_equal(facts["l1"]["by_font"], told[row][cell]["l1"]["by_font"])


def test_controls_leave_the_characters_of_references_as_they_are(dataset):
    cells = cells_of(dataset)[0]
    seen = {}
    for name, control in {"none": lambda _, pairs: pairs, **CONTROLS}.items():
        generator = Recorder()
        score(cells, writing(generator, CPU), control=control, among=["UFUC"], references=2)
        seen[name] = [torch.cat(part) for part in zip(*generator.seen, strict=True)]
        require_told(cells, seen[name][1])
    prototype, references = seen.pop("none")
    for name, (wanted, given) in seen.items():
        changed = [
            not torch.equal(*both)
            for both in (
                (wanted, prototype),
                (given[:, :, 0], references[:, :, 0]),
                (given[:, :, 1], references[:, :, 1]),
            )
        ]
        assert changed == [name == "wrong prototype", name != "wrong prototype", False]


def test_measures_in_training_are_of_references_beside_their_characters(dataset, tiny):
    trainer = build(tiny("wnet", TOLD))
    trainer.stream.close()
    generator, evaluation = Recorder(), GlyphEvaluation(trainer.recipe, dataset, CPU)
    evaluation.measure(generator)
    evaluation.report(generator)
    require_told(evaluation.cells, torch.cat([given for _, given in generator.seen]))


def test_evaluations_are_pooled_with_those_of_generators_that_are_told_as_much(dataset, tmp_path):
    reports = [report_of(dataset, Recorder(told), told) for told in (True, True, False)]
    paths = {(seed, 0): tmp_path / str(seed) for seed in range(3)}
    for report, path in zip(reports, paths.values(), strict=True):
        write(report, {}, path / "evaluation")
    alone = pooled({(0, 0): paths[0, 0]})
    assert alone.told()[0].sentence == reports[0].verdict
    assert alone.told()[1] == reports[0].text
    both = pooled({run: paths[run] for run in ((0, 0), (1, 0))})
    assert both.told()[0].sentence.startswith("Told which characters")
    assert not pooled({(2, 0): paths[2, 0]}).told()[0].sentence.startswith("Told")
    with pytest.raises(ValueError, match="was evaluated in another way"):
        pooled(paths)


# -- a trained run ---------------------------------------------------------------------------------


@pytest.fixture
def run(trained):
    """A paired run of two steps that draws in all orientations."""
    trained("wnet", TOLD, "recipe.turn=0.5", "generator.self_ensemble=true", "data.references=2")
    return gan.load("run")


def test_it_writes_and_learns_by_references_beside_their_characters(run):
    torch.manual_seed(0)
    prototypes, references, shown = (2 * torch.rand(count, 1, 16, 16) - 1 for count in (5, 3, 3))
    both = torch.cat([references, shown], 1)
    made = run.write(prototypes, references, shown)
    with torch.no_grad():
        expected = run.generator(prototypes, both.expand(5, *both.shape))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(made, run.write(prototypes, references, shown.flip(0)), atol=1e-4)
    data = trained_on(run)
    glyphs = known(data, run.device)
    relatives = Relatives(data, CPU, data.characters[0], glyphs["target"][:1])
    own = run.adapted(shown, references, 2, 1e-6, glyphs["prototype"], relatives)
    assert own.generator.paired
    assert not torch.allclose(own.write(prototypes, references, shown), made, atol=1e-4)
    for missing in (None, shown[:2]):
        with pytest.raises(ValueError, match="takes each reference beside its character"):
            run.write(prototypes, references, missing)
    with torch.no_grad():
        drawn = run.generator(
            glyphs["prototype"], torch.cat([glyphs["reference"], glyphs["shown"]], 2)
        )
    off = (drawn - glyphs["target"]).abs().mean().item() / 2
    assert accuracy(run.generator, glyphs) == pytest.approx(off)


def test_references_are_joined_by_their_channels():
    references, shown = torch.rand(2, 4, 3, 2, 5, 5)
    assert torch.equal(paired(Recorder(), references, shown), torch.cat([references, shown], 2))
    assert torch.equal(
        paired(Recorder(), references[0, 0], shown[0, 0]), torch.cat([references, shown], 2)[0, 0]
    )
    assert paired(Recorder(paired=False), references, shown) is references


def test_samples_and_ways_between_styles_are_of_what_references_show(run, monkeypatch):
    data = trained_on(run)
    cells, _ = cells_of(data)
    seen = []
    real = runs.Run.style
    monkeypatch.setattr(
        runs.Run, "style", lambda self, *given: seen.append(given) or real(self, *given)
    )
    content, codes = sample._styles(0, run, data)
    assert run.dressed(content, codes[0]).shape == content.shape
    require_told(cells, torch.stack([(1 - torch.cat(given, 1)) / 2 for given in seen]))
    run.generator.self_ensemble = False
    given = watched(run.generator.style_encoder)
    columns = dict(sheets(run, data, 8, 1))
    require_told(cells, (1 - torch.cat(given)[:, None]) / 2)
    assert {one["reference"].shape[1] for one in columns.values()} == {1}
    assert main(["sample", "run", "--count", "2"]) == 0
    assert Path("run/sampled/interpolation.gif").exists()


@pytest.mark.slow
def test_it_is_exported_with_twice_the_channels(trained):
    trained("wnet", TOLD)
    run = gan.load("run")
    assert main(["export", "run", "--out", "out"]) == 0
    given = export.inputs(run, 3, seed=3)
    assert given["references"].shape == (3, 3, 2, 16, 16)
    drawn = torch.export.load("out/generator.pt2").module()(*given.values())
    with torch.no_grad():
        assert torch.allclose(drawn, run.generator(*given.values()), atol=1e-4)


def test_a_font_needs_to_know_what_references_show(run, monkeypatch, capsys):
    page = np.full((80, 80), 255, dtype=np.uint8)
    page[30:40, 20:60] = 0
    Image.fromarray(page).save("glyph.png")
    seen = []

    def black(self, prototypes, style):
        return torch.where(prototypes < 0.7, -1.0, 1.0)

    real = runs.Run.style
    monkeypatch.setattr(runs.Run, "dressed", black)
    monkeypatch.setattr(
        runs.Run, "style", lambda self, *given: seen.append(given) or real(self, *given)
    )
    given = ["--reference", "glyph.png", "--characters", "丁一", "--out", "few.ttf"]
    arguments = ["font", "run", *given]
    assert main(arguments) == 2
    assert "run sees references beside their characters: say by --shows" in capsys.readouterr().err
    assert not seen
    assert main([*arguments, "--shows", "x"]) == 2
    assert "give a --prototype-font that does, or take references of" in capsys.readouterr().err
    for adapt in ("0", "1"):
        assert main([*arguments, "--shows", "七", "--adapt", adapt]) == 0
        references, shown = seen.pop()
        data = trained_on(run)
        column = data.characters.index("七")
        cells, characters = cells_of(data)
        (place,) = np.flatnonzero(characters == column)
        assert torch.equal((1 - shown) / 2, cells.prototypes(np.array([place])))
        assert references.shape == shown.shape


@pytest.mark.slow
def test_the_command_says_that_it_is_told_what_references_show(run):
    assert main(["evaluate", "run", "--adapt", "1"]) == 0
    page = Path("run/evaluation/evaluation.md").read_text()
    assert PAIRED in page
    assert "Told which characters its references show. When it has learnt" in page
