"""Labels in a file of their own, for a store that keeps its own ones: what `gan relabel` writes.

A safetensors file: `label` and `given`, int64 [N], and `soft`, float32 [N, classes]. Its metadata
have the content hash of the store, the field, how the labels were made, and a SHA-256 of it all.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from gan import disk
from gan.data.store import Store

FORMAT = 1
_TENSORS = {"label": np.int64, "given": np.int64, "soft": np.float32}


class Labels(NamedTuple):
    """The labels of all images of a store for one of its fields, in the order of its rows."""

    content: str  # the store's content hash
    field: str
    label: np.ndarray  # [N], corrected
    given: np.ndarray  # [N], what they were made from
    soft: np.ndarray  # [N, classes], distributions
    settings: Mapping[str, Any]  # JSON: how they were made


def write_labels(path: Path, labels: Labels, *, overwrite: bool = False) -> None:
    """Put the labels into a file that is absent or whole at any time.

    Raises: ValueError where there is a file already that may not be replaced.
    """
    require_free(path, overwrite)
    tensors = {
        name: np.ascontiguousarray(getattr(labels, name), kind) for name, kind in _TENSORS.items()
    }
    facts = {
        "format": FORMAT,
        "content": labels.content,
        "field": labels.field,
        "settings": dict(labels.settings),
    }
    facts["sha256"] = _digest(facts, tensors)
    metadata = {"gan": json.dumps(facts)}  # one entry: safetensors writes several in any order
    disk.put(path, safetensors.numpy.save(tensors, metadata))


def require_free(path: Path, overwrite: bool = False) -> None:
    """Raises: ValueError where labels may not be written to a path."""
    if path.suffix != ".safetensors":
        raise ValueError(f"a file of labels ends in .safetensors, unlike {path}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{path} exists; give another name (--out), or replace it (--overwrite)")


def read_labels(path: Path, store: Store, field: str | None = None) -> Labels:
    """The labels in a file, which are those of this store and, where it is named, this field.

    Raises: ValueError naming `data.labels`, the file, and what does not fit.
    """
    where = f"data.labels={path}"
    if not path.is_file():
        raise ValueError(f"{where}: there is no such file; `gan relabel {store.path}` makes one")
    labels = _parsed(path, where)
    if labels.content != store.content_hash:
        raise ValueError(
            f"{where} has labels of a store with the content {labels.content}, but {store.path} "
            f"has the content {store.content_hash}: name the labels of this store"
        )
    if field not in (None, labels.field):
        raise ValueError(
            f"{where} has labels of the field {labels.field}, not data.label={field}: "
            "leave data.label out, or name the labels of that field"
        )
    return labels


def _parsed(path: Path, where: str) -> Labels:
    """What is in the file, once its hash has matched."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        facts = json.loads(metadata["gan"])
        version, digest = facts["format"], facts.pop("sha256")
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no file of labels: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{where} is of format {version}, this version reads {FORMAT}")
    if digest != _digest(facts, tensors):
        raise ValueError(f"{where} is damaged: its SHA-256 differs; make or copy it again")
    return Labels(facts["content"], facts["field"], **tensors, settings=facts["settings"])


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Covers the facts and, by name, type and shape, all numbers."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
