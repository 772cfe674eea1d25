"""What `gan evaluate` leaves: numbers for machines, one page with pictures for people."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

FOLDER, NUMBERS = "evaluation", "evaluation.json"  # of a run's last checkpoint, and in it
SHOWN = 12  # rows of a sheet
LIBRARIES = ("gan", "torch", "torchvision", "numpy", "pillow", "torch-fidelity", "torchmetrics")


@dataclass(frozen=True)
class Report:
    """What was measured of a run.

    Attributes:
        title: one line.
        verdict: what the numbers allow to say.
        text: tables, for the terminal and the page.
        numbers: single values by tag, as they go into the log.
        facts: everything else that is worth keeping: protocol, splits, values by font.
        pictures: uint8 [H, W, 3] by caption.
    """

    title: str
    verdict: str
    text: str
    numbers: Mapping[str, float]
    facts: Mapping[str, Any]
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


def write(report: Report, run: Mapping[str, Any], folder: Path) -> list[Path]:
    """`evaluation.json`, `evaluation.md` and its pictures; `run` says what was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    lines = [f"# {report.title}", "", report.verdict, "", "```", report.text, "```", ""]
    for place, (caption, pixels) in enumerate(report.pictures.items()):
        path = folder / f"picture-{place}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
        lines += [f"![{caption}]({path.name})", "", f"*{caption}*", ""]
    now = datetime.now(UTC).isoformat("T", "seconds")
    facts = {**run, "versions": versions(), "evaluated": now}
    said = [f"{key}: {_words(value)}" for key, value in facts.items()]
    lines += ["## What was evaluated", "", "```", *said, "```", ""]
    page = folder / "evaluation.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    everything = {**facts, "verdict": report.verdict, "numbers": report.numbers, **report.facts}
    numbers = folder / NUMBERS
    numbers.write_text(
        json.dumps(plain(everything), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return [numbers, page, *paths]


def versions() -> dict[str, str]:
    """Python and the libraries that decide about numbers, as installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def plain(value: Any) -> Any:
    """JSON's own types; numbers that it does not know become words."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
