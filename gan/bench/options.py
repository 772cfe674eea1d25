"""What can be said on the command line: `gan bench data case=batch size=32,64 rounds=21`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gan.config.signature import nearest
from gan.registry import ConfigError


@dataclass(frozen=True)
class Options:
    """Choices of a benchmark; empty ones, and 0, are the benchmark's own.

    `case`, `model`, `size` (pixels), `batch` (images) and `records` (of stores) may name several.
    `steps` are those of one round, `images` those in a made-up store, `folder` is where that is
    written, `threads` are torch's.
    """

    case: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    model: tuple[str, ...] = ()
    batch: tuple[int, ...] = ()
    records: tuple[int, ...] = ()
    rounds: int = 0
    steps: int = 0
    images: int = 0
    threads: int = 1
    folder: Path | None = None

    def scratch(self) -> TemporaryDirectory[str]:
        """A new folder in `folder`, for a block; where open files cannot go, they stay behind."""
        return TemporaryDirectory(prefix="gan-bench-", dir=self.folder, ignore_cleanup_errors=True)


def parse(
    words: Sequence[str],
    reads: Mapping[str, str],
    models: Sequence[str],
    default: Sequence[str] = (),
) -> Options:
    """Options out of `key=value` words.

    `reads` says of each case which options it reads, beside `case` and `threads`; without `case=`
    the `default` ones run.

    Raises: ConfigError naming the word and the nearest known one, or an option that none of the
        chosen cases reads.
    """
    known = {field.name for field in fields(Options)}
    chosen: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"{word!r} is no option: {nearest(key, sorted(known))}, as KEY=VALUE")
        parts = tuple(part for part in value.split(",") if part)
        if key in ("case", "model"):
            for part in parts:
                if part not in (names := reads if key == "case" else models):
                    raise ConfigError(f"{key}={part} is unknown; {nearest(part, [*names])}")
            chosen[key] = parts
        elif key == "folder":
            chosen[key] = Path(value)
        else:
            if not parts or not all(part.isdecimal() and int(part) for part in parts):
                raise ConfigError(f"{word}: {key} must be a whole number of at least 1")
            numbers = tuple(int(part) for part in parts)
            several = key in ("size", "batch", "records")
            if not several and len(numbers) > 1:
                raise ConfigError(f"{word}: {key} must be one number")
            chosen[key] = numbers if several else numbers[0]
    running = chosen.get("case") or default
    read = {"case", "threads", *" ".join(reads[case] for case in running).split()}
    for key in chosen:
        if key not in read:
            raise ConfigError(
                f"{key} is not read by {', '.join(running)}; known: {', '.join(sorted(read))}"
            )
    return Options(**chosen)
