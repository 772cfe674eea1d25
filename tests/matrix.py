"""The table of what the suite tries to break: `pytest --matrix` prints a line for each row.

A test belongs to a row by `@pytest.mark.row("S2", "mutated values: none undetected")`; one test of
a row says what it is about, others may give its name alone. A test says how many things it tried
by `tried(count)`; one that does not counts as one. The numbers travel with the reports, so that
the table is whole under pytest-xdist as well. Below the table stand the rows of which no test was
chosen: `-m row` chooses them all.
"""

from collections import defaultdict

import pytest

ROWS = {  # what the letters are about, and the numbers that have tests
    "C": ("checkpoints", [*range(1, 17), 18]),
    "D": ("several processes", range(1, 11)),
    "E": ("known errors, and what 20 and more endure", [*range(1, 11), 20, 21, 22]),
    "F": ("configuration and run directories", range(1, 7)),
    "G": ("games", range(1, 7)),
    "K": ("disks", range(1, 5)),
    "L": ("streams", range(1, 11)),
    "N": ("numbers", range(1, 17)),
    "P": ("signals", range(1, 8)),
    "S": ("stores", range(1, 15)),
    "T": ("logs", range(1, 6)),
    "X": ("hostile input", range(1, 12)),
}
WITHOUT = {  # rows that have no test, and why
    "C17": "checkpoints are written by the training itself, none in the background",
    "D11": "batch norm over several GPUs: needs them",
    "S15": "stores on network file systems: a matter of documentation",
}
NUMBERED = [f"{letter}{number}" for letter, (_, numbers) in ROWS.items() for number in numbers]


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", help="print what was tried, row by row")


def pytest_configure(config):
    if config.getoption("matrix") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(), "matrix-table")


@pytest.hookimpl(tryfirst=True)  # before tests are left out, as they may have a row's words
def pytest_collection_modifyitems(items):
    marks = [(item, mark.args) for item in items for mark in item.iter_markers("row")]
    words = {row: " ".join(what) for _, (row, *what) in reversed(marks) if what}
    for item, (row, *_) in marks:
        if row not in NUMBERED:
            raise pytest.UsageError(f"{item.nodeid} is of row {row}, which matrix.py does not know")
        item.user_properties.append(("row", (row, words.get(row, ""))))


@pytest.fixture
def tried(request):
    """Adds to the number of things that this test has tried: `tried(300)`."""

    def add(count):
        request.node.user_properties.append(("tried", count))

    return add


class Table:
    """Collects the reports and prints the table at the end."""

    def __init__(self):
        self.what = {}  # the rows that have been tried
        self.tried, self.passed = defaultdict(int), defaultdict(int)

    def pytest_runtest_logreport(self, report):
        if report.skipped or (report.when != "call" and report.passed):
            return
        count = sum(value for name, value in report.user_properties if name == "tried") or 1
        for name, row in report.user_properties:
            if name == "row":
                key, self.what[key] = row
                self.tried[key] += count
                self.passed[key] += count if report.passed else 0

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("matrix")
        terminalreporter.write_line("| row | what | tried | passed |\n| --- | --- | ---: | ---: |")
        for key in filter(self.what.__contains__, NUMBERED):
            numbers = f"{self.tried[key]:,} | {self.passed[key]:,}"
            terminalreporter.write_line(f"| {key} | {self.what[key]} | {numbers} |")
        left = [key for key in NUMBERED if key not in self.what]
        terminalreporter.write_line(f"\nno test chosen: {', '.join(left) or 'none'}")
        for key, why in WITHOUT.items():
            terminalreporter.write_line(f"no test: {key}, {why}")
