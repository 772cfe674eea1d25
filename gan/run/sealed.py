"""The files of a checkpoint: bytes that are verified before anything in them is parsed.

The manifest lists the SHA-256 of every other file and ends with its own. What is parsed is
safetensors, plain JSON, or text, from the very bytes that were hashed.
"""

import errno
import hashlib
import importlib.metadata
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gan.system import flags

FORMAT = 1  # rises with every change; the manifest's closing hash is the same in all formats
JSON_LIMIT = 16 << 20  # bytes of a JSON file, and of the header of a safetensors file
NETWORKS, OPTIMIZERS = "networks.safetensors", "optimizers.safetensors"
STATE, CONFIG, MANIFEST = "state.json", "config.yaml", "manifest.json"
FILES = (NETWORKS, OPTIMIZERS, STATE, CONFIG)

NAME = re.compile(r"step-([0-9]+)(?:\.([0-9]+))?")  # step-00000007.1 made way for a later save


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit, or a value that may not be stored."""


def packed(tensors: Mapping[str, Tensor], what: str) -> bytes:
    """Safetensors bytes of the tensors; tied and channels-last ones become plain copies."""
    try:
        return safetensors.torch.save({name: _copied(name, t) for name, t in tensors.items()})
    except Exception as error:  # names and types that safetensors lacks raise anything
        raise CheckpointError(f"{what} cannot be stored: {error}") from error


def _copied(name: str, tensor: Tensor) -> Tensor:
    if name == "__metadata__":
        raise ValueError(f"{name} is a name that safetensors keeps for itself")
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
        raise ValueError(f"{name} is {reprlib.repr(tensor)}, not a dense tensor")
    plain = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if not plain.isfinite().all():
        raise ValueError(f"{name} has NaN or infinite values; go on from the last checkpoint")
    return plain


def dumped(value: Mapping[str, Any], what: str) -> bytes:
    """JSON bytes of the value, no more than are read again."""
    data = json.dumps(plain(value, what), indent=2).encode()
    if len(data) > JSON_LIMIT:
        raise CheckpointError(f"{what} takes {len(data)} bytes of JSON, more than {JSON_LIMIT}")
    return data


def plain(value: Any, where: str) -> Any:
    """The value as JSON gives it back; what JSON would change, as integer keys, is an error."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        case Mapping() if all(isinstance(key, str) for key in value):
            return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    raise CheckpointError(
        f"{where} is {reprlib.repr(value)}, but a checkpoint keeps null, booleans, finite numbers, "
        "strings, lists and mappings with string keys"
    )


def manifest_of(
    files: Mapping[str, bytes], step: int, run_id: str, facts: Mapping[str, Any]
) -> bytes:
    """JSON whose last entry is the SHA-256 of all bytes before it."""
    manifest = {
        "format": FORMAT,
        "run_id": run_id,
        "step": step,
        "config_sha256": _sha256(files[CONFIG]),
        "versions": versions(),
        "facts": facts,
        "files": [
            {"name": name, "bytes": len(data), "sha256": _sha256(data)}
            for name, data in files.items()
        ],
    }
    body = dumped(manifest, "manifest").removesuffix(b"\n}") + b',\n  "sha256": "'
    return body + _seal(body)


def _seal(body: bytes) -> bytes:
    return _sha256(body).encode() + b'"\n}\n'


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, once its closing hash has matched; it lists each of FILES once, in order."""
    data = _read(path / MANIFEST, range(JSON_LIMIT + 1))
    seal = len(_seal(b""))
    body, found = data[:-seal], data[-seal:]
    if found != _seal(body):
        raise ValueError(f"{MANIFEST} has SHA-256 {_sha256(body)}, but says {found!r}")
    manifest = parsed(MANIFEST, data)
    match manifest:
        case {"format": int(number)} if number > FORMAT:
            raise ValueError(f"its format is {number}, this version reads {FORMAT}: update gan")
        case {"format": 1, "run_id": str(), "step": int(step), "files": [*files]}:
            names = [file.get("name") if isinstance(file, dict) else file for file in files]
        case _:
            raise ValueError(f"{MANIFEST} lacks a known format, run_id, step or files")
    if names != [*FILES]:
        raise ValueError(f"{MANIFEST} lists {reprlib.repr(names)}, not {FILES}")
    if (named := NAME.fullmatch(path.name)) and int(named[1]) != step:
        raise ValueError(f"{MANIFEST} is of step {step}, unlike the folder")
    return manifest


def verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    """A listed file's bytes, which are those that were saved."""
    name, stated = entry["name"], entry.get("sha256")
    data = _read(path / name, [entry.get("bytes")])
    if (found := _sha256(data)) != stated:
        raise ValueError(f"{name} has SHA-256 {found}, but {MANIFEST} says {stated}")
    return data


def _read(path: Path, sizes: Container[object]) -> bytes:
    """All bytes of a regular file of such a size; no link is followed and no pipe waited for."""
    with open(path, "rb", opener=_plainly) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is no regular file")
        if status.st_size not in sizes:
            raise ValueError(f"{path.name} has {status.st_size} bytes, expected was {sizes}")
        return file.read(status.st_size)


def _plainly(path: str, mode: int) -> int:
    if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return os.open(path, mode | flags("O_NOFOLLOW", "O_NONBLOCK"))


def parsed(name: str, data: bytes) -> Any:
    """Tensors by name, a JSON object, or text, as the file's ending says."""
    try:
        if name.endswith(".safetensors"):
            header = int.from_bytes(data[:8], "little")
            _json(data[8 : 8 + header])  # where safetensors lets a name come twice
            return safetensors.torch.load(data)
        return _json(data) if name.endswith(".json") else data.decode()
    except Exception as error:  # hostile content makes a parser raise anything
        raise ValueError(f"{name} cannot be parsed: {error or type(error).__name__}") from error


def _json(data: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys, and without NaN or infinity, be it written as 1e999."""
    if len(data) > JSON_LIMIT:
        raise ValueError(f"{len(data)} bytes of JSON, more than {JSON_LIMIT}")
    value = json.loads(data.decode(), object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError(f"no object but {reprlib.repr(value)}")
    return plain(value, "value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key comes twice in {reprlib.repr([key for key, _ in pairs])}")
    return found


def versions() -> dict[str, str | None]:
    """Of the packages that a result depends on."""
    installed = importlib.metadata.distributions(name="gan")
    return {"torch": torch.__version__, "gan": next((d.version for d in installed), None)}
