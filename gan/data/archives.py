"""Images in a zip or tar archive, read in place: nothing is ever extracted to the disk."""

import bz2
import contextlib
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from gan.data.images import (
    CHOICE,
    RULES,
    Fit,
    classes,
    digest,
    fitted,
    is_image,
    listing,
    printable,
    record,
    require_channels,
    strictly_decoded,
    unread,
)
from gan.data.layout import Record, Rejected

MOST_MEMBERS = 4_000_000
MOST_BYTES = 1 << 30  # of all members together: at least this, and more where the archive is large
MOST_EXPANSION = 100  # bytes of the members for each of the archive; images hardly shrink
LARGEST_HEADER = 1 << 16  # bytes

_TARS: dict[str, Callable[[Path, str], Any]] = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}
_DAMAGES = (
    EOFError,
    OSError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    RecursionError,  # of tarfile, over headers that follow headers
    ValueError,  # of tarfile, over numbers that are none
)


class ArchiveError(ValueError):
    """An archive that is damaged, or larger than one of images can be."""


class Archive:
    """The JPEG, PNG and WebP images of a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, in its order.

    The path may go on into the archive: `photos.zip/train` are the images of that folder. Rules are
    those of `ImageFolder`, except that one folder around all images is no class. Besides, members
    are refused by name that are links or devices, that would leave the folder into which they were
    extracted, that are encrypted, sparse or there twice.
    """

    def __init__(self, path: Path, size: int, channels: int = 3, fit: Fit = fitted) -> None:
        """Lists the archive; `size` is in pixels, `channels` 1 or 3, `fit` as for `ImageFolder`.

        Raises:
            ArchiveError: it holds no image, is damaged, or is larger than its limits.
        """
        require_channels(channels)
        self.file, self.inside = located(path)
        self.fit = fit
        self.shape = (size, size, channels)
        self.name = printable(f"archive {self.file.name}{'/' * bool(self.inside)}{self.inside}")
        self.keys = [
            None if member.problem else member.name for member in members(self.file, self.inside)
        ]
        if not any(self.keys):
            raise ArchiveError(f"the {self.name} holds no JPEG, PNG or WebP image")
        self.classes = classes([key for key in self.keys if key])
        self.names: Mapping[str, Sequence[str]] = self.classes.names
        self.facts: Mapping[str, Any] = self.classes.facts

    def fingerprint(self) -> str:
        """Changes with the name, size or time of the archive."""
        there = listing(self.file.parent, [self.file])
        return digest([RULES, CHOICE, self.shape, self.inside, there])

    def __len__(self) -> int:
        """How many images there are, refused members included."""
        return len(self.keys)

    def __iter__(self) -> Iterator[Record | Rejected]:
        """All images in the order of the archive."""
        return self.after(0)

    def after(self, seen: int) -> Iterator[Record | Rejected]:
        """The images after the first `seen`."""
        return map(self._item, islice(members(self.file, self.inside), seen, None))

    def _item(self, member: "Member") -> Record | Rejected:
        if member.problem:
            return Rejected(member.name, member.problem)
        return record(member.name, partial(self._image, member), self.classes.fields(member.name))

    def _image(self, member: "Member") -> np.ndarray:
        return strictly_decoded(io.BytesIO(member.read()), *self.shape[1:], self.fit)


def archive_of(path: Path) -> Path | None:
    """The archive that a path names or leads into, or None."""
    for file in (path, *path.parents):
        if file.name.lower().endswith((".zip", *_TARS)) and file.is_file():
            return file
    return None


def located(path: Path) -> tuple[Path, str]:
    """The archive that a path names or leads into, and the folder within it, `""` for the top.

    Raises:
        ArchiveError: there is no archive on the way.
    """
    file = archive_of(path)
    if file is None:
        raise ArchiveError(f"there is no archive (.zip, {', '.join(_TARS)}) at {path}")
    return file, "/".join(path.parts[len(file.parts) :])


class Member(NamedTuple):
    """An image in an archive: its name, what is wrong with it, and how to read its bytes now."""

    name: str
    problem: str | None
    read: Callable[[], bytes]


def members(path: Path, inside: str = "") -> Iterator[Member]:
    """The images in an archive, or below a folder of it, and all members that are refused.

    Raises:
        ArchiveError: it is damaged, or has more members or bytes than its limits.
    """
    opened = _zip(path) if path.name.lower().endswith(".zip") else _tar(path)
    most = max(MOST_BYTES, MOST_EXPANSION * path.stat().st_size)
    total, seen = 0, set()
    with _explained(path), contextlib.closing(opened):
        for number, (name, length, problem, read) in enumerate(opened):
            total += length
            if number >= MOST_MEMBERS:
                raise ArchiveError(f"{printable(name)} is one more than {MOST_MEMBERS} members")
            if length < 0 or total > most:
                raise ArchiveError(f"up to {printable(name)} it unpacks to more than {most} bytes")
            if problem or _leaves(name):
                yield Member(printable(name), problem or "it would leave the folder", read)
            elif key := _key(name, inside):
                problem = "it is there twice" if key in seen else unread(key, length)
                seen.add(key)
                yield Member(key, problem, read)


def _leaves(name: str) -> bool:
    """Whether a name means a place outside the folder that it is extracted to, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) is not None


def _key(name: str, inside: str) -> str | None:
    """The name below the folder `inside`, if it is an image and not hidden."""
    name = "/".join(part for part in name.split("/") if part != ".")  # as in `tar -c photos/.`
    above = f"{inside}/" if inside else ""
    if name.endswith("/") or not is_image(name) or not name.startswith(above):
        return None
    key = name.removeprefix(above)
    return None if any(part.startswith(".") for part in key.split("/")) else key


_Found = tuple[str, int, str | None, Callable[[], bytes]]  # name, bytes, problem, read


def _zip(path: Path) -> Generator[_Found, None, None]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")  # as some programs of Windows part folders
            yield name, info.file_size, _zip_problem(info), partial(_zip_bytes, archive, info)


def _zip_problem(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)  # as Unix has it, 0 from elsewhere
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a link" if kind == stat.S_IFLNK else "it is no file"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "its compression is not read"  # zipfile does not limit what the others unpack to
    return "it is encrypted" if info.flag_bits & 1 else None


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size)  # without a number it would unpack whatever is there


def _tar(path: Path) -> Generator[_Found, None, None]:
    suffix = next(suffix for suffix in _TARS if path.name.lower().endswith(suffix))
    with _TARS[suffix](path, "rb") as file:
        headers = _Headers(file)
        archive: Any = tarfile.TarFile(fileobj=cast(IO[bytes], headers))  # typed without members
        while (info := archive.next()) is not None:
            yield info.name, info.size, _tar_problem(info), partial(_tar_bytes, file, info)
            archive.members.clear()  # or it would keep all headers
        if headers.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes most damages for the end
            raise ArchiveError(f"it is cut or damaged at byte {archive.offset}")


def _tar_problem(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return f"it is a link to {printable(info.linkname)}"
    if info.issparse():
        return "it is sparse"
    return None if info.isreg() or info.isdir() else "it is no file"


def _tar_bytes(file: IO[bytes], info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(info.size)


class _Headers:
    """The file that tarfile reads headers from, which may claim to have gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.last = b""  # what was read last

    def read(self, length: int) -> bytes:
        """The next bytes, unless they are more than a header has."""
        if not 0 <= length <= LARGEST_HEADER:
            raise ArchiveError(f"it has a header of {length} bytes")
        self.last = self._file.read(length)
        return self.last


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what goes wrong with an archive into an ArchiveError with its path."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from error
    except _DAMAGES as error:
        raise ArchiveError(f"{path} is damaged or no archive: {error}") from error
