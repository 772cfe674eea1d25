"""`gan compare`: groups of seeds, paired differences, values by font, unfinished runs, curves."""

import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import gan.trained
from gan.commands import main
from gan.commands.compare import compare
from gan.trained import comparison

T = {1: 12.706205, 2: 4.302653, 4: 2.776445, 9: 2.262157, 30: 2.042272}  # tables of Student's


def written(path, seed=0, values=(0.5,), steps=None, scores=None, **settings):
    """A run directory whose `metric/l1` has these values at steps 10, 20, ..."""
    path.mkdir(parents=True)
    config = {
        "seed": seed,
        "run_dir": str(path),
        "trainer": {"steps": steps or 10 * len(values), "log_every": seed + 1},
        "optimizer": {"generator": {"lr": 1e-3}, "discriminator": {"lr": 1e-3}},
        "recipe": {"feature": 75.0},
    }
    for key, value in settings.items():
        section, side, name = key.split("_")
        section = config.setdefault(section, {})
        (section.setdefault(side, {}) if side else section)[name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": 10 * place, "images": 0, "discriminator_updates": 10 * place, "metric/l1": value}
        for place, value in enumerate(values, 1)
    ]
    lines[0] |= {"metric/raw_l1": 9.0, "speed/images_per_second": 1.0, "generator/l1": 1.0}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if scores:
        (path / "finished.json").write_text(json.dumps(scores))
    return path


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of two settings; the second is better by 0.1, 0.2 and 0.3."""
    for seed, base in enumerate((0.5, 0.6, 0.4)):
        written(tmp_path / f"sweep/a{seed}", seed, (0.9, base))
        lower = base - 0.1 * (seed + 1)
        written(tmp_path / f"sweep/b{seed}", seed, (0.8, lower), recipe__feature=0.0)
    return tmp_path / "sweep"


def groups_of(*patterns):
    return comparison.grouped([comparison.read(path) for path in comparison.found(patterns)])


@pytest.mark.parametrize("freedom", T)
def test_students_quantile_is_that_of_the_tables(freedom):
    assert comparison.student(freedom) == pytest.approx(T[freedom], rel=1e-5)


def test_runs_that_differ_in_their_seed_are_one_group_named_by_its_settings(sweep):
    first, second = groups_of(sweep)
    assert [set(group.runs) for group in (first, second)] == [{(0, 0), (1, 0), (2, 0)}] * 2
    assert comparison.named(first, first) == "recipe.feature=75"
    assert comparison.named(second, first) == "recipe.feature=0"


def test_other_splits_repeat_a_run_as_other_seeds_do_and_only_alike_ones_are_paired(tmp_path):
    written(tmp_path / "a0", 0, (0.5,))
    written(tmp_path / "a3", 0, (0.9,), data__split=3)
    written(tmp_path / "b0", 0, (0.4,), data__split=0, recipe__feature=0.0)
    written(tmp_path / "b3", 0, (0.6,), data__split=3, recipe__feature=0.0)
    written(tmp_path / "b5", 1, (9.0,), data__split=3, recipe__feature=0.0)
    first, second = groups_of(tmp_path)
    assert [*first.runs] == [(0, 0), (0, 3)]  # without the setting it is the first split
    assert [*second.runs] == [(0, 0), (0, 3), (1, 3)]
    assert comparison.named(second, first) == "recipe.feature=0"
    difference = comparison.paired(second, first, "metric/l1")
    assert (difference.mean, difference.pairs) == (pytest.approx(-0.2), 2)


def test_a_name_is_as_long_as_it_must_be(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", optimizer_generator_lr=1e-4, optimizer_discriminator_lr=1e-2)
    first, second = groups_of(tmp_path)
    assert comparison.named(first, first) == "discriminator.lr=0.001, generator.lr=0.001"
    assert comparison.named(second, first) == "discriminator.lr=0.01, generator.lr=0.0001"


def test_the_length_of_a_run_makes_a_group_of_its_own_and_its_cadence_does_not(tmp_path):
    written(tmp_path / "a", 0, (0.5,))
    written(tmp_path / "b", 1, (0.5,))  # of another log_every
    written(tmp_path / "c", 0, (0.5, 0.4))
    assert [len(group.runs) for group in groups_of(tmp_path)] == [2, 1]


def test_means_deviations_and_paired_intervals_are_those_of_the_formulas(sweep):
    first, second = groups_of(sweep)
    mean, deviation = comparison.spread(first.values("metric/l1").values())
    assert (mean, deviation) == (pytest.approx(0.5), pytest.approx(0.1))
    difference = comparison.paired(second, first, "metric/l1")
    reach = T[2] * 0.1 / math.sqrt(3)
    expected = (-0.2, -0.2 - reach, -0.2 + reach, 3)
    assert difference == pytest.approx(expected, rel=1e-5)
    mine, other = (np.array(list(g.values("metric/l1").values())) for g in (second, first))
    unpaired = math.sqrt(mine.var(ddof=1) / 3 + other.var(ddof=1) / 3) * T[4]
    assert abs(reach - unpaired) > 0.01  # the control


def repeats(values):
    """A group with the values [S, N] of N seeds of each of S splits."""
    runs = {
        (seed, split): comparison.Record(Path(), (seed, split), {}, 1, 1, {"metric/l1": {1: value}})
        for split, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
    }
    return comparison.Group({}, runs)


def test_seeds_of_one_split_count_once_where_there_are_several_splits():
    values = np.array([[0.1, 0.3], [0.5, 0.9], [0.2, 0.4]])
    zeros = repeats(np.zeros((3, 2)))
    means = values.mean(1)
    reach = T[2] * means.std(ddof=1) / math.sqrt(3)
    expected = (0.4, 0.4 - reach, 0.4 + reach, 3)
    assert comparison.paired(repeats(values), zeros, "metric/l1") == pytest.approx(expected)
    one = values[:1]  # of one split seeds are all that differs
    low = 0.2 - T[1] * one.std(ddof=1) / math.sqrt(2)
    assert comparison.paired(repeats(one), zeros, "metric/l1")[1::2] == pytest.approx((low, 2))


def test_intervals_hold_the_truth_where_splits_differ_more_than_their_seeds(monkeypatch):
    monkeypatch.setattr(comparison, "student", functools.cache(comparison.student))
    random, zeros = np.random.default_rng(0), repeats(np.zeros((3, 3)))
    held, alone = 0, 0
    for _ in range(400):  # the truth is 0
        values = random.normal(size=(3, 1)) + 0.1 * random.normal(size=(3, 3))
        difference = comparison.paired(repeats(values), zeros, "metric/l1")
        held += difference.low <= 0 <= difference.high
        reach = comparison.student(8) * values.std(ddof=1) / 3
        alone += abs(values.mean()) <= reach  # the control: nine runs taken for independent
    assert held == pytest.approx(0.95 * 400, abs=13)  # three standard deviations
    assert alone < 0.8 * 400


def test_only_common_seeds_are_paired_and_one_pair_has_no_interval(tmp_path):
    written(tmp_path / "a0", 0, (0.5,))
    written(tmp_path / "a1", 1, (0.9,))
    written(tmp_path / "b0", 0, (0.4,), recipe__feature=0.0)
    written(tmp_path / "b7", 7, (9.0,), recipe__feature=0.0)
    first, second = groups_of(tmp_path)
    assert comparison.paired(second, first, "metric/l1") == (pytest.approx(-0.1), None, None, 1)
    assert comparison.paired(second, first, "metric/gone") is None
    assert "-0.1 (one pair)" in compare([tmp_path])


def test_runs_are_compared_at_the_last_step_that_both_have(tmp_path):
    written(tmp_path / "a", 0, (0.9, 0.8, 0.1))
    written(tmp_path / "b", 0, (0.7, 0.5), steps=30, recipe__feature=0.0)
    first, second = groups_of(tmp_path)
    assert comparison.paired(second, first, "metric/l1").mean == pytest.approx(-0.3)
    assert comparison.paired(first, second, "metric/l1").mean == pytest.approx(0.3)


def test_measures_of_one_kind_of_run_stay_beside_those_of_another(tmp_path):
    pairs = written(tmp_path / "a")  # metric/l1, and metric/raw_l1 of another generator
    glyphs = written(tmp_path / "b", recipe__feature=0.0)
    lines = (glyphs / "metrics.jsonl").read_text().replace("metric/l1", "metric/validation_l1")
    (glyphs / "metrics.jsonl").write_text(
        lines.replace("metric/raw_l1", "metric/raw_validation_l1")
    )
    records = [comparison.read(path) for path in (pairs, glyphs)]
    assert comparison.measures(records) == ["metric/l1", "metric/validation_l1"]


@pytest.mark.parametrize("config", ["", "seed: 0\ntrainer:", "seed: [1]\ntrainer: {steps: 1}"])
def test_a_configuration_of_something_else_is_told_by_its_file(tmp_path, config):
    other = written(tmp_path / "other") / "config.yaml"
    other.write_text(config)
    with pytest.raises(ValueError, match=f"{other} is no configuration of a run"):
        compare([tmp_path])


def test_unfinished_runs_are_read_and_marked(tmp_path):
    written(tmp_path / "a", 0, (0.9, 0.8, 0.7))
    killed = written(tmp_path / "b", 0, (0.7, 0.5), steps=30, recipe__feature=0.0)
    with (killed / "metrics.jsonl").open("ab") as lines:
        lines.write(b'{"step": 24, "event": "save", "text": "full"}\n')
        lines.write(b'{"step": 25, "metric/l1": "nan"}\n{"step": 26, "metr\xff')
    text = compare([tmp_path])
    assert "| recipe.feature=0*" in text
    assert f"- {killed}: step 25 of 30" in text
    assert str(tmp_path / "a") not in text
    stopped = written(tmp_path / "c", 0, (0.7,))
    (stopped / "stopped.json").write_text("{}")
    assert not comparison.read(stopped).finished
    assert comparison.read(tmp_path / "a").finished


FAMILIES = {"one": 0, "two": 1, "three": 1}


def scored(offset):
    fonts = {"one": 0.1, "two": 0.2, "three": 0.4}
    cell = {font: {"l1": value + offset * (1 + value)} for font, value in fonts.items()}
    return {"scores": {"UFUC": cell}, "families": FAMILIES}


def test_values_by_font_are_paired_by_font_over_families(tmp_path):
    for seed in (0, 1):
        written(tmp_path / f"a{seed}", seed, scores=scored(0.0))
        better = scored(-0.1 - 0.1 * seed)
        written(tmp_path / f"b{seed}", seed, scores=better, recipe__feature=0.0)
    first, second = groups_of(tmp_path)
    by_font = comparison.by_font(second, first, "UFUC/l1")
    values = -0.15 * (1 + np.array([0.1, 0.4, 0.2]))  # of one, three, two
    from gan.metrics.scores import bootstrap

    assert by_font[:3] == pytest.approx(bootstrap(values, np.array([0, 1, 1])))
    assert by_font.pairs == 3
    alone = bootstrap(values, np.array([0, 1, 2]))
    assert by_font[1:3] != pytest.approx(alone[1:])  # the control: each font its own family
    assert comparison.paired(second, first, "UFUC/l1").mean == pytest.approx(by_font.mean)
    assert comparison.measures([run for g in (first, second) for run in g.runs.values()]) == [
        "UFUC/l1",
        "metric/l1",
    ]
    assert "recipe.feature=0, by font" in compare([tmp_path])


def test_an_evaluation_with_rows_counts_before_what_training_has_measured(tmp_path):
    path = written(tmp_path / "a", scores=scored(0.0))
    said = {
        "rows": {"W-Net": {"UFUC": {"fonts": ["one", "two"], "l1": {"by_font": [0.3, 0.5]}}}},
        "split": {"families": FAMILIES},
    }
    (path / "evaluation").mkdir()
    (path / "evaluation/evaluation.json").write_text(json.dumps(said))
    record = comparison.read(path)
    assert record.fonts("UFUC/l1") == {"one": 0.3, "two": 0.5}
    assert record.last("UFUC/l1") == pytest.approx(0.4)
    for broken in ("{", "[]", '{"rows": {"W-Net": 3}}', '{"scores": 1}'):
        (path / "evaluation/evaluation.json").write_text(broken)
        assert comparison.read(path).fonts("UFUC/l1").keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("evaluated", "ended", "value"), [(5, 10, 0.1), (10, 10, 0.9), (None, 10, 0.9), (20, 10, 0.9)]
)
def test_an_evaluation_from_before_the_end_does_not_count(tmp_path, evaluated, ended, value):
    at_end = {**scored(0.1), "step": ended}
    path = written(tmp_path / "a", scores=at_end)
    late = {"UFUC": {"a1": {"l1": 0.9}}, "SFUC": {"a2": {"l1": 0.8}}}
    said = {"scores": late, "families": {"a1": "late"}}
    (path / "evaluation").mkdir()
    step = {} if evaluated is None else {"step": evaluated}
    (path / "evaluation/evaluation.json").write_text(json.dumps({**said, **step}))
    record = comparison.read(path)
    ours = at_end["scores"]["UFUC"] if value == 0.1 else said["scores"]["UFUC"]
    assert record.fonts("UFUC/l1") == {font: found["l1"] for font, found in ours.items()}
    assert record.fonts("SFUC/l1") == ({} if value == 0.1 else {"a2": 0.8})


@pytest.mark.parametrize("word", ["nan", "inf"])
def test_an_evaluation_may_hold_values_that_are_not_finite(tmp_path, word):
    for place, (seed, last) in enumerate(((0, word), (1, 0.4), (0, 0.3), (1, 0.2))):
        settings = {"recipe__feature": 0.0} if place > 1 else {}
        path = written(tmp_path / f"run{place}", seed, (0.5, float(last)), **settings)
        values = {"fonts": [*FAMILIES], "psnr": {"by_font": [30.0, last, 20.0]}}
        (path / "evaluation").mkdir()
        (path / "evaluation/evaluation.json").write_text(
            json.dumps({"rows": {"W-Net": {"UFUC": values}}, "split": {"families": FAMILIES}})
        )
    tags = ["UFUC/psnr", "metric/l1"]
    assert f"| {word}" in compare([tmp_path], tags, out=tmp_path / "out")
    facts = json.loads((tmp_path / "out/compare.json").read_text(), parse_constant=pytest.fail)
    first, second = facts["groups"]
    assert first["runs"][0]["values"] == dict.fromkeys(tags, word)
    assert [first["metrics"][tag] for tag in tags] == [{"mean": word, "deviation": "nan"}] * 2
    assert second["metrics"]["metric/l1"]["mean"] == pytest.approx(0.25)
    assert second["differences"]["metric/l1"]["mean"] == {"nan": "nan", "inf": "-inf"}[word]


def test_of_two_runs_alike_the_one_that_has_come_further_counts(tmp_path):
    for name, count in (("a", 1), ("b", 3), ("c", 2)):
        written(tmp_path / name, values=(0.9, 0.5, 0.1)[:count], steps=30)
    (group,) = groups_of(tmp_path)
    assert {repeat: run.path.name for repeat, run in group.runs.items()} == {(0, 0): "b"}
    assert group.values("metric/l1") == {(0, 0): 0.1}
    assert {run.path.name for run in group.others} == {"a", "c"}
    text = compare([tmp_path], out=tmp_path / "out")
    (said,) = json.loads((tmp_path / "out/compare.json").read_text())["groups"]
    assert said["left_out"] == [str(run.path) for run in group.others]
    assert f"Left out, as another run of these repeats them:\n\n- {tmp_path / 'a'}\n" in text
    assert comparison.chosen([group], str(tmp_path / "c")) is group
    assert "Left out" not in compare([tmp_path / "b"])


def test_runs_are_told_apart_by_what_a_run_directory_is_known_by(tmp_path):
    written(tmp_path / "a0", 0, recipe__bend=0.0, data__path="photos/")
    written(tmp_path / "a1", 1, data__path="photos")  # from before there was bend
    (group,) = groups_of(tmp_path)
    assert [*group.runs] == [(0, 0), (1, 0)]
    written(tmp_path / "b", 0, recipe__bend=0.7, data__path="photos")
    first, second = groups_of(tmp_path)
    assert comparison.named(first, first) == "recipe.bend=0"
    assert comparison.named(second, first) == "recipe.bend=0.7"
    written(tmp_path / "c", 0, data__path="other/")
    for wanted in ("path=other", "data.path=other/"):
        chosen = comparison.chosen(groups_of(tmp_path), wanted)
        assert [run.path.name for run in chosen.runs.values()] == ["c"]


@pytest.mark.parametrize("wanted", ["0.0002", "2e-4", "2.0E-04", ".0002"])
def test_a_number_is_known_however_it_is_written(tmp_path, wanted):
    written(tmp_path / "a", 0, optimizer__lr=1e-4)
    written(tmp_path / "b", 0, optimizer__lr=2e-4)
    chosen = comparison.chosen(groups_of(tmp_path), f"optimizer.lr={wanted}")
    assert [run.path.name for run in chosen.runs.values()] == ["b"]
    written(tmp_path / "c", 0, optimizer__lr=None)
    with pytest.raises(ValueError, match="fits 0 groups"):  # a word is no number
        comparison.chosen(groups_of(tmp_path), "optimizer.lr=low")


def test_how_long_a_constant_schedule_lasts_tells_no_groups_apart(tmp_path):
    for seed, length in enumerate((10, 20)):
        node = {"schedule_generator_name": "constant", "schedule_generator_length": length}
        written(tmp_path / f"a{seed}", seed, **node)
    (group,) = groups_of(tmp_path)
    assert len(group.runs) == 2
    node |= {"schedule_generator_name": "linear"}
    written(tmp_path / "b", 2, **node)
    assert [len(group.runs) for group in groups_of(tmp_path)] == [2, 1]


def test_a_directory_whose_name_looks_like_a_pattern_is_found(tmp_path):
    written(tmp_path / "freeze=[generator.x]")
    assert comparison.found([tmp_path / "freeze=[generator.x]"])


def test_runs_from_before_a_free_setting_existed_are_of_the_same_group(tmp_path):
    for seed, free in enumerate(({}, {"trainer__graphs": True}, {"trainer__graphs": False})):
        written(tmp_path / f"a{seed}", seed, **free)
    (group,) = groups_of(tmp_path)
    assert [*group.runs] == [(0, 0), (1, 0), (2, 0)]
    written(tmp_path / "b", 0, trainer__order="generator")  # the control: no free one
    assert len(groups_of(tmp_path)) == 2


def test_files_are_written_where_out_says(sweep, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", str(sweep), "--baseline", "recipe.feature=0", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert (out / "compare.md").read_text() == text
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:4]] == [
        "recipe.feature=0",
        "3",
        "0.3 ± 0.17",
    ]
    facts = json.loads((out / "compare.json").read_text())
    assert [group["baseline"] for group in facts["groups"]] == [False, True]
    assert facts["groups"][0]["differences"]["metric/l1"]["mean"] == pytest.approx(0.2)
    with Image.open(out / "compare.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50
    assert not Path("compare.md").exists()


def test_a_band_is_the_mean_and_deviation_of_those_seeds_that_have_come_so_far(tmp_path):
    from gan.trained.curves import band

    written(tmp_path / "a", 0, (0.4, 0.2))
    written(tmp_path / "b", 1, (0.6,), steps=20)
    (group,) = groups_of(tmp_path)
    steps, mean, deviation = band(group, "metric/l1")
    assert steps.tolist() == [10, 20]
    assert mean == pytest.approx([0.5, 0.2])
    assert deviation == pytest.approx([math.sqrt(0.02), 0.0])


def test_without_matplotlib_the_picture_is_left_out_and_said(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gan.trained.curves", None)
    monkeypatch.delattr(gan.trained, "curves", raising=False)
    assert main(["compare", str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "compare.png needs matplotlib: pip install 'gan[compare]'" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "compare.json"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere holds no run"),
        (["{sweep}", "--metric", "l2"], "no run has the metric 'l2'; did you mean"),
        (["{sweep}", "--baseline", "feature=7"], "--baseline feature=7 fits 0 groups"),
        (["{sweep}/a0", "{sweep}/b*", "--baseline", "seed=0"], "fits 0 groups"),
    ],
)
def test_what_is_not_there_is_refused(sweep, capsys, arguments, words):
    assert main(["compare", *(a.format(sweep=sweep) for a in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_patterns_runs_and_folders_name_the_same_runs_once(sweep):
    assert len(comparison.found([sweep, f"{sweep}/a*", sweep / "a0"])) == 6
    assert comparison.chosen(groups_of(sweep), str(sweep / "b1")).settings == {
        "recipe.feature": 0.0
    }


def test_without_measures_the_terms_are_compared(tmp_path):
    path = written(tmp_path / "a")
    (path / "metrics.jsonl").write_text(
        '{"step": 1, "generator/l1": 2.0, "generator/learning_rate": 1}\n'
    )
    assert comparison.measures([comparison.read(path)]) == ["generator/l1"]


@pytest.mark.slow
def test_a_finished_run_tells_its_values_by_font(tiny):
    from gan.build import build

    build(tiny("wnet", "trainer.best=metric/validation_l1", "trainer.measure_every=2")).train()
    record = comparison.read(Path("run"))
    assert record.finished
    mean = float(Path("run/report.txt").read_text().split("\nW-Net  ")[1].split("|")[4].split()[0])
    assert record.last("UFUC/l1") == pytest.approx(mean, abs=6e-4)
    assert comparison.measures([record])[:2] == ["UFUC/l1", "UFUC/ssim"]
    assert "UFUC/l1" in compare(["run"])
