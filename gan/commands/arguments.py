"""Values that several commands take."""

import argparse
from pathlib import Path


def folder(text: str) -> Path:
    """A folder to write to, which may be made; said before the work if it cannot be one."""
    path = Path(text)
    try:
        above = next((p for p in (path, *path.parents) if p.exists()), path)
        is_file = above.exists() and not above.is_dir()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if is_file:
        raise argparse.ArgumentTypeError(f"{above} is a file, not a folder to write to")
    return path
