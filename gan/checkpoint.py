"""Verified, atomic checkpoints: folders of safetensors and JSON that load whole or not at all.

    checkpoints/step-00012000/
      networks.safetensors      parameters and buffers
      optimizers.safetensors    moments and step counts
      state.json                whatever else training goes on from
      config.yaml               the resolved configuration: data, never instantiated
      manifest.json             run, step, versions, and the SHA-256 of each file; written last

A folder gets its name when every byte of it is on the disk, and nothing is parsed before its hash
has matched, since torch and safetensors load flipped bits without a word. Hashes show integrity,
not origin: a hostile checkpoint is refused or is mere numbers, as nothing in it can be code.
"""

import errno
import itertools
import os
import re
import reprlib
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan.disk import move, room, sync
from gan.run.sealed import (
    CONFIG,
    FILES,
    MANIFEST,
    NAME,
    NETWORKS,
    OPTIMIZERS,
    STATE,
    CheckpointError,
    dumped,
    manifest_of,
    packed,
    parsed,
    read_manifest,
    verified,
)

__all__ = [
    "CONFIG",
    "MANIFEST",
    "Checkpoint",
    "CheckpointError",
    "UnreadableError",
    "free",
    "load",
    "newest",
    "restore",
    "resumable",
    "rotate",
    "save",
    "set_aside",
    "sweep",
]


_UPDATE = ": update gan"  # how a manifest of a newer format is refused


class UnreadableError(CheckpointError):
    """A checkpoint that may be whole, but cannot be read from here, or by this version."""


class Checkpoint(NamedTuple):
    """What a verified folder holds, on the CPU."""

    path: Path
    step: int
    networks: dict[str, Tensor]
    optimizers: dict[str, Tensor]  # empty where only the networks were asked for
    state: dict[str, Any]
    config: str
    manifest: dict[str, Any]


def save(
    folder: Path,
    step: int,
    *,
    run_id: str,
    networks: Mapping[str, Tensor],
    optimizers: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: str,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write `folder/step-XXXXXXXX` and return its path once all of it is on the disk.

    `facts` (device, threads, ...) go into the manifest. Where the name is taken, that folder moves
    aside, to be removed in the end if it is a valid checkpoint of this run, and kept if damaged.
    A save that fails leaves earlier checkpoints as they were, and nothing half written.

    Raises:
        CheckpointError: a value that may not be stored (NaN, no tensor, not JSON), by its name, or
            another run's checkpoint in the way.
        OSError: the disk, with the bytes needed and free, and what to do.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", run_id):
        raise CheckpointError(f"run_id must be letters, digits, '.', '_' and '-', not {run_id!r}")
    files = {
        NETWORKS: packed(networks, "networks"),
        OPTIMIZERS: packed(optimizers, "optimizers"),
        STATE: dumped(state, "state"),
        CONFIG: config.encode(),
    }
    files[MANIFEST] = manifest_of(files, step, run_id, facts)
    needed = sum(map(len, files.values())) * 6 // 5 + (64 << 20)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{run_id}-{target.name}"
    try:
        _write_folder(temporary, files, needed)
        _publish(temporary, target, run_id)
    except OSError as error:
        raise _explained(error, target, needed) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _note_newest(target, run_id)
    return target


def newest(folder: Path, notice: Callable[[str], None] = print) -> Path | None:
    """The checkpoint of the highest step that loads; `notice` is told what was skipped and why."""
    return _newest(folder, notice)[0]


def resumable(folder: Path, notice: Callable[[str], None] = print) -> Path | None:
    """The newest as well, or None where whatever is there is damaged.

    Raises:
        UnreadableError: none loads, but one may be whole; a start anew would leave it behind.
    """
    found, unread = _newest(folder, notice)
    if unread is not None:
        raise UnreadableError(
            f"no checkpoint of {folder} loads, but {unread[0].name} may be whole: "
            f"{unread[1].__cause__}; mend that to go on, or choose another run_dir to start anew"
        )
    return found


def load(path: Path, *, networks_only: bool = False) -> Checkpoint:
    """The checkpoint with exactly the bytes saved; with `networks_only`, no optimizer is read.

    Raises:
        CheckpointError: a file missing, damaged or hostile, by its name.
        UnreadableError: a file that the disk does not give, by its name, or a newer format.
    """
    try:
        manifest = read_manifest(path)
        if strangers := {name for name in os.listdir(path) if name[0] != "."} - {*FILES, MANIFEST}:
            raise ValueError(f"it holds {reprlib.repr(sorted(strangers))}, which no save writes")
        unread = {OPTIMIZERS} if networks_only else set()
        files = {e["name"]: verified(path, e) for e in manifest["files"] if e["name"] not in unread}
        parts = {name: parsed(name, data) for name, data in files.items()}
    except (ValueError, OSError) as error:
        kind = UnreadableError if _may_be_whole(error) else CheckpointError
        raise kind(
            f"checkpoint {path}: {error}; resume=auto takes the newest that verifies"
        ) from error
    optimizers = parts.get(OPTIMIZERS, {})
    return Checkpoint(
        path, manifest["step"], parts[NETWORKS], optimizers, parts[STATE], parts[CONFIG], manifest
    )


def restore(live: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str) -> None:
    """Copy the stored tensors into the live ones in place, or none of them.

    Raises:
        CheckpointError: names, shapes or dtypes that differ, ten of them in words.
    """
    differences = [f"{name} is not stored" for name in live.keys() - stored.keys()]
    differences += [f"{name} is unknown here" for name in stored.keys() - live.keys()]
    differences += [
        f"{name} is {_form(stored[name])} stored and {_form(live[name])} here"
        for name in live.keys() & stored.keys()
        if _form(live[name]) != _form(stored[name])
    ]
    if differences:
        raise CheckpointError(
            f"{what} does not fit in {len(differences)} places: "
            f"{'; '.join(sorted(differences)[:10])}; compare its {CONFIG} with this run's"
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(stored[name])


def rotate(folder: Path, run_id: str, keep: int = 2, pinned: Collection[int] = ()) -> None:
    """Remove this run's checkpoints but the `keep` newest and the `pinned` steps.

    Damaged manifests and other runs' checkpoints are neither counted nor touched.
    """
    if keep < 2:
        raise ValueError(f"keep must be at least 2, not {keep}: the newest might be damaged later")
    own = [(step, path) for step, path in _scan(folder) if _owner(path) == run_id]
    steps = sorted({step for step, _ in own}, reverse=True)
    for step, path in own:
        if step not in steps[:keep] and step not in pinned:
            _discard(path, run_id)


def set_aside(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints beyond a step, so that `newest` passes them over; their new paths."""
    moved = []
    for ahead, path in _scan(folder):
        if ahead > step:
            moved.append(path.rename(free(path.with_name(f"ahead-of-{step}-{path.name}"))))
    return moved


def sweep(folder: Path, run_id: str) -> None:
    """Remove what a killed process of this run left half written or half removed."""
    leftover = rf"\.(tmp|trash)-{re.escape(run_id)}-(step-[0-9]+(\.[0-9]+)*|index\.json)"
    for name in os.listdir(folder) if folder.is_dir() else []:
        if re.fullmatch(leftover, name):
            _remove(folder / name)


def free(path: Path) -> Path:
    """The path itself, or the first of path.1, path.2, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([path], numbered) if not os.path.lexists(name))


# -- folders --------------------------------------------------------------------------------------


def _newest(
    folder: Path, notice: Callable[[str], None]
) -> tuple[Path | None, tuple[Path, UnreadableError] | None]:
    """The newest that loads, or else the newest that may be whole, and why it does not load."""
    unread = None
    for _, path in _scan(folder):
        try:
            return load(path).path, None
        except CheckpointError as error:
            notice(f"skipped {error}")
            if isinstance(error, UnreadableError):
                unread = unread or (path, error)
    return None, unread


def _may_be_whole(error: Exception) -> bool:
    """Whether what went wrong says nothing against the bytes of a checkpoint."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return str(error).endswith(_UPDATE)  # its manifest has verified


def _write_folder(folder: Path, files: Mapping[str, bytes], needed: int) -> None:
    """Write the files in order into a new folder, if `needed` bytes are free."""
    if not folder.parent.is_dir():
        folder.parent.mkdir(parents=True)
        sync(folder.parent.parent)
    if room(folder.parent) < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    shutil.rmtree(folder, ignore_errors=True)  # left by the same save, killed earlier
    folder.mkdir()
    for name, data in files.items():
        _write(folder / name, data)
    sync(folder)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.read_bytes() != data:
        raise OSError(errno.EIO, "the bytes read back differ from those written")


def _publish(temporary: Path, target: Path, run_id: str) -> None:
    """Give the folder its name; at every moment one of this step, old or new, can be loaded."""
    aside = free(target)
    replaced = aside != target and _replaceable(target, run_id)
    if aside != target:
        move(os.rename, target, aside)
    move(os.rename, temporary, target)
    sync(target.parent)
    if replaced:
        _discard(aside, run_id)


def _replaceable(path: Path, run_id: str) -> bool:
    """Whether the checkpoint may go once the next is there: it is of this run and not damaged."""
    owner = _owner(path)
    if owner not in (None, run_id):
        raise CheckpointError(f"{path} is of run {owner}, not {run_id}: choose another run_dir")
    try:
        return bool(load(path))
    except CheckpointError:
        return False


def _owner(path: Path) -> str | None:
    """The run whose manifest is there; None for a link and a damaged one."""
    try:
        return None if path.is_symlink() else read_manifest(path)["run_id"]
    except (ValueError, OSError):
        return None


def _explained(error: OSError, target: Path, needed: int) -> OSError:
    """The error in words: what was to be written where, and the way out."""
    return OSError(
        error.errno,
        f"{target} was not saved ({error.strerror or error}): {needed >> 20} MiB needed, "
        f"{room(target) >> 20} MiB free; make room, mend the disk, or choose another run_dir",
    )


def _note_newest(target: Path, run_id: str) -> None:
    """Write index.json, a hint for people and scripts: nothing here relies on it."""
    temporary = target.with_name(f".tmp-{run_id}-index.json")
    try:
        temporary.unlink(missing_ok=True)
        _write(temporary, dumped({"newest": target.name, "run_id": run_id}, "index"))
        move(os.replace, temporary, target.with_name("index.json"))
    except OSError as error:
        warnings.warn(f"{target} is saved, but not index.json beside it: {error}", stacklevel=3)


def _discard(path: Path, run_id: str) -> None:
    """Remove a checkpoint by way of another name, so that no half of one is ever found."""
    trash = free(path.with_name(f".trash-{run_id}-{path.name}"))
    try:
        move(os.rename, path, trash)
    except OSError as error:
        warnings.warn(f"{path} could not be removed: {error}", stacklevel=3)
    else:
        _remove(trash)


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        warnings.warn(f"{path} could not be removed: {error}", stacklevel=4)


def _scan(folder: Path) -> list[tuple[int, Path]]:
    """Whatever is named like a checkpoint, highest step first; those moved aside come after."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [match for match in map(NAME.fullmatch, names) if match]
    matches.sort(key=lambda match: (-int(match[1]), int(match[2] or 0), match[0]))
    return [(int(match[1]), folder / match[0]) for match in matches]


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
