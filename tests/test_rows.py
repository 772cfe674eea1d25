"""Evaluations of several splits as one: every font counts once, and the claim is about all."""

import json

import numpy as np
import pytest
import torch
import yaml

from gan.commands import main
from gan.commands.compare import compare
from gan.data.store import Store
from gan.data.triples import Glyphs
from gan.metrics.glyph_report import Adaptation, glyph_report
from gan.metrics.judges import Judge
from gan.metrics.report import plain, write
from gan.trained.rows import pooled

CPU = torch.device("cpu")


def constant(image):
    """Reads every image as the first style and the first character."""
    return {"style": torch.eye(14)[[0] * len(image)], "character": torch.eye(20)[[0] * len(image)]}


class Blank(torch.nn.Module):
    """Leaves every page blank."""

    def forward(self, prototypes, references):
        return torch.ones_like(prototypes)


@pytest.fixture(scope="module")
def reports(glyph_store):
    """Evaluations of a generator that draws prototypes fainter, of two splits that share a font."""
    judges = [Judge(constant, {"character": share, "style": 0.9}) for share in (0.97, 0.99)]
    found = [
        glyph_report(
            {"raw": lambda prototype, *_: prototype * 0.9},
            Glyphs(Store(glyph_store), split=split),
            judge,
            CPU,
        )
        for split, judge in enumerate(judges)
    ]
    first, second = (set(report.facts["rows"]["W-Net"]["UFUC"]["fonts"]) for report in found)
    assert first & second
    assert first ^ second
    return found


@pytest.fixture
def runs(reports, tmp_path):
    """Directories of runs of those splits, with other seeds."""
    for split, report in enumerate(reports):
        path = tmp_path / f"run{split}"
        path.mkdir()
        config = {"seed": 7 - split, "trainer": {"steps": 1}, "data": {"split": split}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        (path / "metrics.jsonl").write_text(json.dumps({"step": 1, "metric/l1": 0.5}) + "\n")
        write(report, {}, path / "evaluation")
    return {(7 - split, split): tmp_path / f"run{split}" for split in range(2)}


def test_the_evaluation_of_one_run_is_told_as_it_was(reports, runs):
    found, text = pooled({(7, 0): runs[7, 0]}).told()
    assert text == reports[0].text
    assert found.sentence == reports[0].verdict
    assert found.claim == reports[0].facts["claim"]


def test_a_font_of_several_runs_counts_once_with_the_mean_of_its_values(reports, runs):
    rows = [report.facts["rows"] for report in reports]
    found = pooled(runs)
    for row, cell, metric in (("W-Net", "UFUC", "l1"), ("prototype copy", "SFUC", "ssim")):
        values = {}
        for cells in (own[row][cell] for own in rows):
            for font, value in zip(cells["fonts"], cells[metric]["by_font"], strict=True):
                values.setdefault(font, []).append(value)
        means = [np.mean(each) for each in values.values()]
        assert found.rows[row].cells[cell].mean(metric) == pytest.approx(np.mean(means))
        every = np.mean([value for each in values.values() for value in each])  # the wrong variant
        assert found.rows[row].cells[cell].mean(metric) != pytest.approx(every, rel=1e-6)
    cell = found.rows["W-Net"].cells["UFUC"]
    assert cell.pairs == sum(own["W-Net"]["UFUC"]["targets"] for own in rows)
    assert len(cell.styles) == len(set(cell.families.tolist()))  # each tiny style is a family
    assert found.ceiling["character"] == pytest.approx(0.98)


def test_all_splits_together_are_told_as_one_evaluation(runs):
    found, text = pooled(runs).told()
    fonts = len(pooled(runs).rows["W-Net"].cells["UFUC"].styles)
    assert f"{fonts} fonts, {fonts} families" in text.split("\nUFUC: ")[1].split("\n")[0]
    assert "One seed: others may differ" in text  # of each split
    four = {(seed, split): runs[7 - split, split] for seed in (1, 2) for split in (0, 1)}
    assert "others may differ" not in pooled(four).told()[1]
    assert "One split: others may differ" in pooled({(s, 0): runs[7, 0] for s in (1, 2)}).told()[1]
    assert "One seed: others may differ" in pooled({(1, s): runs[7, 0] for s in (1, 2)}).told()[1]
    assert "W-Net minus the row on UFUC" in text
    assert found.tests["transfers"]


def test_an_evaluation_from_before_the_end_is_refused(runs):
    run = runs[7, 0]
    file = run / "evaluation/evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": 3}))
    pooled(runs)  # it has not come to an end
    (run / "finished.json").write_text(json.dumps({"step": 3}))
    pooled(runs)
    (run / "finished.json").write_text(json.dumps({"step": 4}))
    with pytest.raises(ValueError, match=r"evaluated at step 3 and has ended at step 4: gan eval"):
        pooled(runs)


def test_the_adapted_one_is_judged_where_all_are_adapted_alike(glyph_store, reports, runs):
    learnt = glyph_report(
        {"raw": lambda prototype, *_: prototype * 0.9},
        Glyphs(Store(glyph_store)),
        Judge(constant, {"character": 0.97, "style": 0.9}),
        CPU,
        Adaptation(lambda shown, references, characters: Blank(), {"steps": 1, "enough": 0.1}),
    )
    write(learnt, {}, runs[7, 0] / "evaluation")
    with pytest.raises(ValueError, match="run1 was evaluated in another way"):
        pooled(runs)
    found, text = pooled({(7, 0): runs[7, 0]}).told()
    assert "W-Net, adapted minus the row" in text
    assert found.sentence == learnt.verdict
    assert found.sentence.startswith("When it has learnt its references by heart: ")


def test_compare_tells_the_rows_of_each_group_where_they_are_asked_for(runs, tmp_path, capsys):
    names = [str(path) for path in runs.values()]
    out = tmp_path / "out"
    assert main(["compare", *names, "--metric", "l1", "--rows", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    found, tables = pooled(runs).told()
    assert tables in text
    assert f"all: {found.sentence}" in text
    (group,) = json.loads((out / "compare.json").read_text())["groups"]
    assert group["claim"] == found.claim
    assert [run["split"] for run in group["runs"]] == [0, 1]
    tests = {claim: [test._asdict() for test in tests] for claim, tests in found.tests.items()}
    assert group["tests"] == plain(tests)
    assert tables not in compare(names, ["l1"])


def test_a_run_without_rows_or_of_other_fonts_is_refused(runs):
    path = runs[6, 1] / "evaluation/evaluation.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "split": {"families": {"another": 0}}}))
    with pytest.raises(ValueError, match="run1 was evaluated on other fonts"):
        pooled(runs)
    less = [{key: part for key, part in said.items() if key != gone} for gone in said]
    parts = [json.dumps(rest) for rest in less if not {"rows", "split", "protocol"} <= set(rest)]
    assert len(parts) == 3
    for broken in ("{", "[]", "{}", '{"rows": {"W-Net": {"UFUC": {}}}}', *parts):
        path.write_text(broken)
        with pytest.raises(ValueError, match="run1 has no evaluation by font: gan evaluate .*run1"):
            pooled(runs)
