"""What every test may use: `shared.py`, the table of `matrix.py`, and pytest in pytest."""

pytest_plugins = ["matrix", "pytester"]


def pytest_configure(config):
    """Import the fixtures, and torch with them, where tests run: not where workers are watched."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared")
