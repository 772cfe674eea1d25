"""Imports go one way, so that each room can be read without those above it."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gan"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
ABOVE = {"build", "trainer", "commands", "check", "rundir", "state", "saves"}
PARTS = {"recipes", "losses", "networks", "augment", "restyle", "pool", "recipe"}
NEVER = {  # room -> rooms that it does not know
    "recipe": ABOVE | {"data", "metrics", "monitor", "networks", "losses", "recipes"},
    "losses": ABOVE | {"data", "metrics", "monitor", "recipes"},
    "networks": ABOVE | {"data", "metrics", "monitor", "recipes", "losses"},
    "recipes": ABOVE | {"data", "metrics", "monitor", "networks"},
    "augment": ABOVE | {"data", "recipes", "networks"},
    "restyle": ABOVE | {"data", "recipes", "networks"},
    "data": ABOVE | PARTS | {"metrics", "monitor", "player"},
    "player": ABOVE | {"data", "recipes", "networks", "losses", "metrics", "monitor"},
    "trainer": {"build", "commands", "check", "data", "recipes", "networks", "losses", "metrics"},
    "metrics": ABOVE | {"monitor", "recipes", "networks"},
    "distributed": ABOVE | PARTS | {"data", "metrics", "monitor", "player"},
}


def imported(path):
    """The rooms of `gan` that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gan":
            inside = node.module.split(".")[1:]
            yield from inside[:1] or (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            parts = (alias.name.split(".") for alias in node.names)
            yield from (part[1] for part in parts if part[0] == "gan" and part[1:])


@pytest.mark.parametrize("room", NEVER)
def test_a_room_does_not_know_those_above_it(room):
    files = [path for name, path in MODULES.items() if name.split(".")[1] == room]
    assert files
    for path in files:
        known = set(imported(path)) & NEVER[room]
        assert not known, f"{path.relative_to(PACKAGE)} imports {sorted(known)}"


def test_how_many_images_a_network_sees_at_once_is_said_once_for_all_metrics():
    homes = [
        path.stem for path in (PACKAGE / "metrics").glob("*.py") if SAID.search(path.read_text())
    ]
    assert homes == ["extractors"]


SAID = re.compile(r"^PORTION\b", re.MULTILINE)


def test_the_table_sees_imports(tmp_path):
    (tmp_path / "x.py").write_text(
        "from gan import build, data\nimport gan.trainer\ndef f():\n    from gan.recipes import x\n"
    )
    assert set(imported(tmp_path / "x.py")) == {"build", "data", "trainer", "recipes"}
