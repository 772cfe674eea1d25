"""The table of `pytest --matrix`: what was tried and what passed, in one process and in several."""

from pathlib import Path

import pytest
from matrix import NUMBERED, WITHOUT

QUICK = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")  # slow to import anew
SUITE = """
import pytest

@pytest.mark.row("S10", "the tenth")
def test_counts(tried):
    tried(300)
    tried(5)

@pytest.mark.row("S2", "the second")
def test_passes():
    pass

@pytest.mark.row("S2")
def test_fails(tried):
    tried(7)
    assert False

@pytest.mark.row("S1", "left out")
@pytest.mark.skip(reason="for the test")
def test_skipped():
    pass

def test_without_a_row():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "2"])
def test_rows_add_up(pytester, processes, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makepyfile(SUITE)
    options = ("-p", "matrix", "--matrix", "-n", processes)
    result = pytester.runpytest_subprocess(*options, *QUICK)
    result.stdout.fnmatch_lines(
        [
            "| row | what | tried | passed |",
            "| S2 | the second | 8 | 1 |",
            "| S10 | the tenth | 305 | 305 |",
            "no test chosen: C1, C2, *",
            "no test: D11, *",
        ]
    )
    result.stdout.no_fnmatch_line("| S1 *")


def test_without_the_option_there_is_no_table(pytester):
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_inprocess("-p", "matrix", *QUICK)
    result.stdout.no_fnmatch_line("| row | what*")


def test_unknown_rows_are_refused(pytester):
    pytester.makepyfile(SUITE.replace("S10", "S99"))
    result = pytester.runpytest_inprocess("-p", "matrix", *QUICK)
    result.stderr.fnmatch_lines(["*test_counts is of row S99, which matrix.py does not know"])


def test_every_row_has_a_test():
    files = Path(__file__).parent.rglob("test_*.py")
    text = "".join(path.read_text() for path in files if path.name != "test_matrix.py")
    assert [row for row in NUMBERED if f'"{row}"' not in text] == []
    assert [row for row in WITHOUT if f'"{row}"' in text] == []
