"""The table of what the suite tries to break: `pytest --matrix` prints a line for each row.

A test belongs to a row by `@pytest.mark.row("S2", "mutated values: none undetected")`; one test of
a row says what it is about, others may give its name alone. A test says how many things it tried
by `tried(count)`; one that does not counts as one. The numbers travel with the reports, so that
the table is whole under pytest-xdist as well.
"""

import re
from collections import defaultdict

import pytest


def pytest_addoption(parser):
    parser.addoption("--matrix", action="store_true", help="print what was tried, row by row")


def pytest_configure(config):
    if config.getoption("matrix") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(), "matrix-table")


def pytest_collection_modifyitems(items):
    for item in items:
        rows = [mark.args for mark in item.iter_markers("row")]
        item.user_properties.extend(("row", row) for row in rows)


@pytest.fixture
def tried(request):
    """Adds to the number of things that this test has tried: `tried(300)`."""

    def add(count):
        request.node.user_properties.append(("tried", count))

    return add


class Table:
    """Collects the reports and prints the table at the end."""

    def __init__(self):
        self.what = {}
        self.tried, self.passed = defaultdict(int), defaultdict(int)

    def pytest_runtest_logreport(self, report):
        if report.skipped or (report.when != "call" and report.passed):
            return
        count = sum(value for name, value in report.user_properties if name == "tried") or 1
        for name, row in report.user_properties:
            if name == "row":
                key, *what = row
                self.what[key] = self.what.get(key) or " ".join(what)
                self.tried[key] += count
                self.passed[key] += count if report.passed else 0

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("matrix")
        terminalreporter.write_line("| row | what | tried | passed |\n| --- | --- | ---: | ---: |")
        for key in sorted(self.what, key=in_order):
            numbers = f"{self.tried[key]:,} | {self.passed[key]:,}"
            terminalreporter.write_line(f"| {key} | {self.what[key]} | {numbers} |")


def in_order(key):
    """Rows by their letters, then by their number: S2 before S10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
