"""A run directory and the configuration it holds."""

import hashlib
import os
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gan import checkpoint, distributed
from gan.check import Checked
from gan.locks import HeldError, Lock
from gan.plain import parsed
from gan.registry import ConfigError
from gan.signature import flat
from gan.trainer import Trainer

# what may change between runs in one run directory
FREE = (
    "trainer.steps",
    "trainer.log_every",
    "trainer.sample_every",
    "trainer.measure_every",
    "trainer.save_every",
    "trainer.keep",
    "trainer.device",
    "data.resident",
    "resume",
    "run_dir",
)

_held: dict[str, Lock] = {}  # by real path
_trainers: Counter[str] = Counter()  # alive, by real path


def previous(
    run_dir: Path, resume: str, values: dict[str, Any], say: Callable[[str], None]
) -> Path | None:
    """The checkpoint to continue from, if any.

    Schedules whose length was left open take the one fixed when the run started. Raises:
    ConfigError where the directory holds another configuration, or where `resume` forbids or asks
    for what is not there.
    """
    _require_usable(run_dir)
    stored = run_dir / "config.yaml"
    if resume == "never":
        if run_dir.exists() and any(run_dir.iterdir()):
            raise ConfigError(
                f"resume=never, but run_dir={run_dir} is not empty; choose another run_dir"
            )
        return None
    if stored.exists():
        before = _stored(stored, stored.read_text(encoding="utf-8"))
        _keep_lengths(values, before)
        _require_same(run_dir, before, values)
    if resume == "auto":
        return checkpoint.newest(run_dir / "checkpoints", say)
    if not Path(resume).exists():
        raise ConfigError(
            f"resume={resume} does not exist; use auto, never or a checkpoint's folder"
        )
    before = _stored(Path(resume), checkpoint.load(Path(resume)).config)
    _keep_lengths(values, before)
    _require_same(Path(resume), before, values)
    return Path(resume)


def occupy(run_dir: Path, trainer: Trainer) -> None:
    """Make the directory this trainer's own for as long as it lives, and keep its configuration.

    What killed saves of the same run have left there is removed.

    Raises: ConfigError naming the process that trains there.
    """
    if distributed.rank() != 0:
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(run_dir)
    if real not in _held:
        try:
            _held[real] = Lock(Path(real, ".lock"))
        except HeldError as holder:
            raise ConfigError(
                f"run_dir={run_dir} is in use by {holder}: wait for it, or choose another run_dir"
            ) from None
    _trainers[real] += 1
    weakref.finalize(trainer, _leave, real)
    checkpoint.sweep(run_dir / "checkpoints", trainer.run_id)
    keep(run_dir, trainer.config)


def _leave(real: str) -> None:
    _trainers[real] -= 1
    if not _trainers[real]:
        _held.pop(real).release()


def _require_usable(run_dir: Path) -> None:
    """Refuse a directory that cannot be made or written, before anything is built."""
    there = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written" if there.is_dir() else "is no folder"
        raise ConfigError(f"run_dir={run_dir} cannot be used: {there} {reason}; choose another one")


def keep(run_dir: Path, config: str) -> None:
    """Write the configuration, whole or not at all."""
    temporary = run_dir / ".config.yaml"
    temporary.write_text(config, encoding="utf-8")
    os.replace(temporary, run_dir / "config.yaml")


def fix_lengths(checked: Checked) -> None:
    """A schedule whose length was left open lasts as long as the run that starts it."""
    settings = checked.settings
    planned = {"generator": settings.steps, "discriminator": settings.discriminator_updates()}
    for side, node in checked.values["schedule"].items():
        if "length" in node:
            node["length"] = node["length"] or planned[side]
            checked.entries[f"schedule.{side}"][1]["length"] = node["length"]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both, apart from those that are free to change."""
    old, new = flat(before), flat(now)
    keys = sorted({*old, *new} - set(FREE))
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def run_id(values: Mapping[str, Any]) -> str:
    """The same for every start of one run, another for every other configuration."""
    fixed = sorted((key, value) for key, value in flat(values).items() if key not in FREE)
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:12]


def _require_same(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = differences(before, now)
    if changed:
        listed = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in changed[:5])
        raise ConfigError(
            f"run_dir={run_dir} holds another configuration ({listed}): choose another run_dir, "
            "or the same settings to go on"
        )


def _keep_lengths(values: dict[str, Any], before: Mapping[str, Any]) -> None:
    for side, node in values["schedule"].items():
        if "length" in node and node["length"] is None:
            node["length"] = before.get("schedule", {}).get(side, {}).get("length")


def _stored(path: Path, text: str) -> dict[str, Any]:
    try:
        values = parsed(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no configuration; choose another run_dir or restore it")
    return values
