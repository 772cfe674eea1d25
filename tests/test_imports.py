"""Imports go one way, so that each room can be read without those above it."""

import ast
import faulthandler
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gan import commands

PACKAGE = Path(__file__).parents[1] / "gan"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
ABOVE = {"build", "trainer", "commands", "trained", "config.check", "config.rehearsal"}
ABOVE |= {f"run.{room}" for room in ("rundir", "state", "saves", "ending", "finetune", "rollback")}
PARTS = {"recipes", "losses", "networks", "augment", "restyle", "orientations", "pool", "recipe"}
NEVER = {  # room -> rooms that it does not know
    "recipe": ABOVE | {"data", "metrics", "run", "networks", "losses", "recipes"},
    "losses": ABOVE | {"data", "metrics", "run", "recipes"},
    "networks": ABOVE | {"data", "metrics", "run", "recipes", "losses"},
    "recipes": ABOVE | {"data", "metrics", "run", "networks"},
    "augment": ABOVE | {"data", "run", "recipes", "networks"},
    "restyle": ABOVE | {"data", "run", "recipes", "networks"},
    "data": ABOVE | PARTS | {"metrics", "run", "step", "player"},
    "player": ABOVE | {"data", "run", "recipes", "networks", "losses", "metrics"},
    "step": ABOVE - {"trainer", "config.check"}
    | {"data", "run", "recipes", "networks", "losses", "metrics"},
    "trainer": {"build", "commands", "trained", "data", "recipes", "networks", "losses", "metrics"},
    "metrics": ABOVE | {"run.monitor", "recipes", "networks"},
    "run": {"build", "commands", "trained", "recipes", "networks", "losses"},
    "config": {"build", "commands", "trained", "run", "data", "recipes", "networks", "losses"},
    "system": {name.split(".")[1] for name in MODULES},
    "distributed": ABOVE | PARTS | {"data", "metrics", "run", "player"},
}


def imported(path):
    """The rooms of `gan` that a file imports, also inside functions: `data`, `data.store`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gan":
            inside = node.module.split(".")[1:]
            yield from (rooms([*inside, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            parts = (alias.name.split(".") for alias in node.names)
            yield from (rooms(part[1:]) for part in parts if part[0] == "gan" and part[1:])


def rooms(parts):
    """A room and the room around it: `run`, `run.state`."""
    return {parts[0], ".".join(parts[:2])}


@pytest.mark.parametrize("room", NEVER)
def test_a_room_does_not_know_those_above_it(room):
    files = [path for name, path in MODULES.items() if name.split(".")[1] == room]
    assert files
    for path in files:
        known = set().union(*imported(path)) & NEVER[room]
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
    found = set().union(*imported(tmp_path / "x.py"))
    assert found == {"build", "data", "trainer", "recipes", "recipes.x"}


def test_an_interrupt_while_numpy_is_imported_ends_the_program():
    """torch imports it as well, and would go on with half of it, which stores no checkpoint."""
    program = """
        import sys
        class Interrupting:
            def find_spec(self, name, *given):
                if name == "numpy.linalg":
                    sys.meta_path.remove(self)
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupting())
        import gan
        print("went on")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, encoding="utf-8")
    assert ended.stderr.strip().endswith("KeyboardInterrupt")
    assert not ended.stdout


def test_a_crash_shows_its_stack_where_stderr_is_real(monkeypatch):
    enabled = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: bool(enabled))
    monkeypatch.setattr(faulthandler, "enable", lambda: enabled.append(1))
    commands.show_crashes()  # pytest has put a file in place of stderr
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    commands.show_crashes()
    commands.show_crashes()
    assert enabled == [1]
