"""A run directory and the configuration it holds."""

import atexit
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from gan import checkpoint, disk, distributed
from gan.checkpoint import CONFIG
from gan.config.check import Checked
from gan.config.plain import parsed
from gan.config.settings import multiplies_bf16
from gan.config.signature import flat
from gan.locks import HeldError, Lock
from gan.registry import ConfigError
from gan.run import sealed

if TYPE_CHECKING:
    from gan.trainer import Trainer

LOCK, FINISHED = ".lock", "finished.json"
PARTS = dict.fromkeys(("checkpoints", "samples", "tensorboard"), "folder")
PARTS |= dict.fromkeys(("metrics.jsonl", CONFIG, FINISHED), "file")  # of a run directory
_held: dict[tuple[int, Path], Lock] = {}  # by process, since a fork inherits it
_keeping = threading.Lock()  # logs are written by threads of their own

# what may change between runs in one run directory
FREE = (
    "trainer.steps",
    "trainer.log_every",
    "trainer.sample_every",
    "trainer.measure_every",
    "trainer.save_every",
    "trainer.keep",
    "trainer.failed_saves",
    "trainer.rollbacks",
    "trainer.judges",
    "trainer.inception",
    "trainer.vgg16",
    "trainer.lpips",
    "trainer.measured",
    "trainer.best",
    "trainer.evaluate",
    "trainer.watch",
    "trainer.timeout",
    "trainer.micro_batch",
    "trainer.device",
    "trainer.compile",
    "trainer.graphs",
    "trainer.profile",
    "data.resident",
    "resume",
    "run_dir",
)
# settings that came later, with what was so in runs that began without them
LATER = {
    "generator.self_ensemble": False,
    "generator.paired": False,
    "recipe.bend": 0.0,
    "recipe.turn": 0.0,
    "recipe.hollow": 0.0,
    "data.more": None,
    "penalties.*.end": 1.0,  # of a user's own as well
    "penalties.*.images": 500_000,
}
FOLDERS = "data.path", "data.more", "init"  # with or without a slash at their end


class TakenError(ConfigError):
    """Another process has the run directory by now; nothing of this one may be written there."""


def previous(
    run_dir: Path, resume: str, values: dict[str, Any], say: Callable[[str], None]
) -> Path | None:
    """The checkpoint to continue from, if any.

    Schedules whose length was left open take the one fixed when the run started. What it started
    with, its newest checkpoint says; where none was ever made, nothing has begun. Where `resume`
    names a checkpoint, the newest of the run that has come from it goes before it, so that the same
    command goes on. Raises: ConfigError where the directory holds another configuration, or where
    `resume` forbids or asks for what is not there; CheckpointError where none loads, but not all
    are damaged.
    """
    _require_usable(run_dir)
    if resume == "never":
        if run_dir.exists() and any(run_dir.iterdir()):
            raise ConfigError(
                f"resume=never, but run_dir={run_dir} is not empty: choose another run_dir, or go "
                "on with what is there (resume=auto)"
            )
        return None
    if run_dir.exists():
        hold(run_dir)
    found = checkpoint.resumable(run_dir / "checkpoints", say)
    stored = (found or run_dir) / CONFIG
    ended = (run_dir / FINISHED).exists() or any((run_dir / "checkpoints").glob("step-*"))
    if (found or ended) and stored.exists():
        _continue(run_dir, _stored(stored, stored.read_text(encoding="utf-8")), values)
    if resume == "auto":
        return found
    if found and _origin(found) == _place(resume):
        say(
            f"{found} has come from resume={resume} and is gone on with; to start from there once "
            "more, choose another run_dir"
        )
        return found
    if not Path(resume).exists():
        raise ConfigError(
            f"resume={resume} does not exist; use auto, never or a checkpoint's folder"
        )
    _continue(Path(resume), _stored(Path(resume), checkpoint.load(Path(resume)).config), values)
    return Path(resume)


def _origin(path: Path) -> Any:
    """Where the run of a checkpoint was told to start from, or None; the files are verified."""
    files = {entry["name"]: entry for entry in sealed.read_manifest(path)["files"]}
    return sealed.parsed(sealed.STATE, sealed.verified(path, files[sealed.STATE])).get("from")


def _place(resume: str) -> str:
    return str(Path(resume).resolve())


def _asked(run: "Trainer") -> str:
    """`auto`, `never`, or the checkpoint that a trainer's run was told to start from."""
    return (parsed(run.config) or {}).get("resume", "auto")


def again(run: "Trainer") -> str:
    """The command by which a run goes on that has stopped."""
    return "the same command" + (" with resume=auto" if _asked(run) == "never" else "")


def finished(checked: Checked) -> bool:
    """Whether this very run has come to its last step in its directory, and has reported."""
    try:
        record = json.loads((checked.run_dir / FINISHED).read_text(encoding="utf-8"))
        before = _stored(checked.run_dir, (checked.run_dir / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    _keep_lengths(checked.values, before)
    return record["step"] >= checked.settings.steps and not differences(before, checked.values)


def begin(run: "Trainer", resumed: Path | None, say: Callable[[str], None]) -> None:
    """Put a trainer into its run directory, and the checkpoint that was found into the trainer."""
    folder = run.monitor.run_dir
    if resumed is not None:
        run.resume(resumed)
        run.run_id = sealed.read_manifest(resumed)["run_id"]  # a folder's other spelling leaves it
        run.saves.origin = _origin(resumed) if _asked(run) == "auto" else _place(_asked(run))
        _require_steps(run, parsed((resumed / CONFIG).read_text("utf-8")) or {})
        say(f"{folder} goes on at step {run.step}")
    else:
        _require_kept(run.recipe.state_dict())
    if run.settings.precision == "auto" and multiplies_bf16(run.device):
        say("trainer.precision=auto: networks play in bf16, which this machine has units for")
    stated = {"config": run.run_id, "data": run.stream.content, **run.counts()}
    distributed.require_same(stated, run.device, "start")
    if distributed.rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder, fresh=resumed is None)
    checkpoint.sweep(folder / "checkpoints", run.run_id)
    for left in checkpoint.set_aside(folder / "checkpoints", run.step):
        say(
            f"{left} lies ahead of step {run.step}, where this run is, and is kept under that "
            "name, out of the way of resume"
        )
    disk.replace(folder / CONFIG, run.config)


def _require_kept(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ConfigError for what no checkpoint keeps: extra state, a mask of minus infinity."""
    for name in [name for name in tensors if name.endswith("_extra_state")]:
        raise ConfigError(
            f"{name} is kept by no checkpoint: register_buffer what a run goes on from"
        )
    dense = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and not is_lazy(t)}
    for name, tensor in dense.items():
        if not tensor.isfinite().all():
            raise ConfigError(
                f"{name} has NaN or infinite values from the start, which no checkpoint keeps: "
                "make it finite, or register_buffer(..., persistent=False) what never changes"
            )


def _require_steps(run: "Trainer", before: Mapping[str, Any]) -> None:
    """Raises ConfigError: fewer steps than there were, or more in which both rates are 0."""
    steps, folder = run.settings.steps, run.monitor.run_dir
    if run.step > steps:
        raise ConfigError(
            f"trainer.steps={steps} lies behind step {run.step}, where run_dir={folder} goes on: "
            "ask for as many steps or more, or begin another run"
        )
    planned = before.get("trainer", {}).get("steps", steps)
    ends = zip(run.players, (steps - 1, run.settings.discriminator_updates() - 1), strict=True)
    if steps > planned and not any(player.schedule(end) for player, end in ends):
        raise ConfigError(
            f"trainer.steps={steps} was {planned} until now, and the schedules of run_dir={folder} "
            "end before it: both rates would be 0, and no weight would move; leave trainer.steps "
            f"as it was, or begin another run with its weights (init={folder}, another run_dir)"
        )


def hold(run_dir: Path, fresh: bool = False) -> None:
    """Take a run directory for this process until `release`, or until the process ends.

    `fresh` says that no checkpoint was found there.

    Raises: ConfigError naming the process that has it.
    """
    if distributed.rank() or (os.getpid(), run_dir.resolve()) in _held:
        return
    if fresh and checkpoint.newest(run_dir / "checkpoints", notice=lambda skipped: None):
        raise ConfigError(f"run_dir={run_dir} was used by another run meanwhile: start again")
    try:
        _held[os.getpid(), run_dir.resolve()] = Lock(run_dir.resolve() / LOCK)
    except HeldError as holder:
        raise ConfigError(
            f"run_dir={run_dir} is in use by {holder}: stop it, or choose another run_dir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"run_dir={run_dir} cannot be written ({error.strerror}): choose another run_dir"
        ) from error


def keep(run_dir: Path) -> None:
    """Take a run directory again whose lock file was removed under the process that holds it.

    Raises:
        TakenError: another process was quicker.
        OSError: it cannot be made or written.
    """
    with _keeping:
        lock = _held.get((os.getpid(), run_dir.resolve()))
        if lock is None or lock.in_place():
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            _held[os.getpid(), run_dir.resolve()] = Lock(lock.path)
        except HeldError as holder:
            raise TakenError(
                f"run_dir={run_dir} was removed or moved while training, and is in use by "
                f"{holder}: this run stops, as both would write there; start it again with "
                "another run_dir"
            ) from None
        lock.release()


@atexit.register
def _release_all() -> None:
    """Leave no lock file behind where a start has failed."""
    for process, run_dir in list(_held):
        if process == os.getpid():
            release(run_dir)


def release(run_dir: Path) -> None:
    """Give a run directory back."""
    lock = _held.pop((os.getpid(), run_dir.resolve()), None)
    if lock is not None:
        lock.release()


def _require_usable(run_dir: Path) -> None:
    """Refuse a directory that cannot be made or written, before anything is built."""
    every = run_dir, *run_dir.absolute().parents
    there = next(folder for folder in every if os.path.lexists(folder))  # a link may lead nowhere
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written" if there.is_dir() else "is no folder"
        raise ConfigError(f"run_dir={run_dir} cannot be used: {there} {reason}; choose another one")
    for name, kind in PARTS.items():
        path = run_dir / name
        if path.exists() and not (path.is_dir() if kind == "folder" else path.is_file()):
            raise ConfigError(
                f"run_dir={run_dir} cannot be used: its {name} is no {kind}; remove that, or "
                "choose another one"
            )


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
    old, new = fixed(before), fixed(now)
    keys = sorted({*old, *new})
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def run_id(values: Mapping[str, Any]) -> str:
    """The same for every start of one run, another for every other configuration."""
    return hashlib.sha256(repr(sorted(fixed(values).items())).encode()).hexdigest()[:12]


def fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys that a run is known by, with values; without later ones that change nothing."""
    every = [(k, _folder(v) if k in FOLDERS else v) for k, v in flat(values).items()]
    return {k: v for k, v in every if k not in FREE and (general(k), v) not in LATER.items()}


def general(key: str) -> str:
    """A dotted key as `LATER` has it, whichever penalty's it is."""
    kind, _, rest = key.partition(".")
    return f"{kind}.*.{rest.partition('.')[2]}" if kind == "penalties" else key


def _folder(value: Any) -> Any:
    """A folder as its plain name, several as theirs; one in a list is that one."""
    if isinstance(value, list):
        return _folder(value[0]) if len(value) == 1 else [_folder(one) for one in value]
    return value.rstrip(f"/{os.sep}") or value if isinstance(value, str) else value


def _continue(run_dir: Path, before: Mapping[str, Any], now: dict[str, Any]) -> None:
    """Take the lengths of before. Raises: ConfigError where anything else differs."""
    _keep_lengths(now, before)
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
