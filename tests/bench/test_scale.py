"""How a step grows: each point is the game that it says, and a store is opened and left."""

import sys

import pytest

from gan.bench import games, growth, scale
from gan.bench.options import Options, parse
from gan.commands import main

SLOW = pytest.mark.slow


@SLOW
def test_a_row_says_how_much_more_than_the_first_its_batch_takes(composed):
    options = Options(model=("tiny",), batch=(4, 8), rounds=2)
    rows = list(scale.batch(options, composed))
    assert [row["batch"] for row in rows] == [4, 8]
    for row in rows:
        assert (row["id"], row["goal"]) == ("S1", None)
        assert row["us_per_image"] == pytest.approx(1e3 * row["value"] / row["batch"], rel=1e-2)


@SLOW
def test_an_image_is_a_point_of_its_own_size(composed):
    rows = scale.image(Options(model=("tiny",), size=(8, 16), rounds=2), composed)
    assert [row["image"] for row in rows] == [8, 16]


@SLOW  # another process writes them
def test_stores_are_written_trained_from_and_removed(composed, tmp_path):
    options = Options(records=(600, 100), rounds=2, folder=tmp_path)
    small, large = scale.store(options, composed)
    assert (small["records"], large["records"]) == (100, 600)
    assert large["read_us_per_image"] > 0
    assert large["megabytes"] > small["megabytes"]
    assert large["memory_mb"]["own"] > 0
    assert not any(tmp_path.iterdir())


@SLOW
@pytest.mark.filterwarnings("ignore:unused")
def test_as_many_terms_are_trained_as_a_point_says(composed):
    for number, words in scale.weighed().items():
        game = games.trainer(composed(*games.MODELS["tiny_wnet"], *games.COMMON, *words))
        game.play()
        noted = {tag.partition("/")[2] for tag in game.monitor.pending()}
        assert len(noted - {"gradient_norm", *game.recipe.statistics}) == number, words


def test_terms_are_those_of_wnet(composed):
    (row,) = scale.terms(Options(model=("tiny",)), composed)
    assert "W-Net" in row["skipped"]


def test_several_batches_and_records_can_be_named():
    options = parse(["batch=4,8", "records=10,20"], scale.READS, [], scale.DEFAULT)
    assert (options.batch, options.records) == ((4, 8), (10, 20))


ROWS = [
    {"case": "batch", "model": "dcgan", "batch": 4, "value": 10.0, "ratio": 1.0, "iqr": [0.9, 1.1]},
    {"case": "batch", "model": "dcgan", "batch": 8, "value": 19.0, "ratio": 1.9, "iqr": [1.8, 2.0]},
    {"case": "terms", "model": "dcgan", "skipped": "only W-Net has terms to leave out"},
    *(
        {
            "case": "store",
            "model": "tiny",
            "records": records,
            "value": 5.0,
            "ratio": 1.0,
            "iqr": [0.9, 1.1],
            "memory_mb": {"own": 300.0 + records / 1e5, "mapped": 200.0},
        }
        for records in (10_000, 2_000_000)
    ),
]


def test_a_figure_has_what_was_measured():
    batch, store, memory = growth.figure(ROWS).axes
    (line,) = batch.lines
    assert [*line.get_xdata()] == [4, 8]
    assert [*line.get_ydata()] == [1.0, 1.9]
    assert store.get_xscale() == "log"
    assert [*memory.lines[0].get_ydata()] == [300.1, 320.0]


def test_advice_names_the_growth():
    said = scale.advice(ROWS)
    assert "4 to 8 images in a batch: 1.9 times" in said
    assert "10000 to 2000000 records in a store: 1 times" in said
    assert scale.advice(ROWS[2:3]) == ""


def test_a_plot_is_drawn_for_scale_alone_and_needs_matplotlib(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plots"
    monkeypatch.setitem(scale.CASES, "batch", lambda options, compose: ROWS[:2])
    assert main(["bench", "scale", "case=batch", "--out", str(out)]) == 0
    assert (out / "scale.png").stat().st_size > 0
    assert main(["bench", "data", "--out", str(out)]) == 2
    assert "gan bench scale" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gan.bench.growth", None)
    assert main(["bench", "scale", "case=batch", "--out", str(out)]) == 2
    assert "gan[compare]" in capsys.readouterr().err
