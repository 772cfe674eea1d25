"""The table of `pytest --matrix`: what was tried and what passed, in one process and in several."""

from pathlib import Path

import pytest

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

@pytest.mark.row("A1", "left out")
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
    options = ("-p", "matrix", "--matrix", "-n", processes, "-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*options)
    result.stdout.fnmatch_lines(
        [
            "| row | what | tried | passed |",
            "| S2 | the second | 8 | 1 |",
            "| S10 | the tenth | 305 | 305 |",
        ]
    )
    result.stdout.no_fnmatch_line("| A1 *")


def test_without_the_option_there_is_no_table(pytester):
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_inprocess("-p", "matrix", "-p", "no:cacheprovider")
    result.stdout.no_fnmatch_line("| row | what*")
