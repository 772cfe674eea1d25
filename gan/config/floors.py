"""Versions below which a package has known holes: told at the start, refused where they matter."""

from functools import cache
from importlib import metadata

from packaging.version import Version

from gan.config.signature import ConfigError

FLOORS = {  # the first versions without, as in pyproject.toml, and where the holes are
    "torch": ("2.11", "reading weights"),
    "pillow": ("13", "decoding images"),
    "lmdb": ("2.3", "reading stores"),
    "hydra-core": ("1.3.8", "building from settings"),
    "safetensors": ("0.8", "reading checkpoints"),
}


def below(*packages: str) -> list[str]:
    """A sentence for each of the packages, by default all, that is older than its floor."""
    return [
        f"{package} {found} is older than {floor}, and has known holes in {what}: "
        f"pip install -U '{package}>={floor}'"
        for package, (floor, what) in FLOORS.items()
        if package in (packages or FLOORS) and Version(found := installed(package)) < Version(floor)
    ]


def require(*packages: str) -> None:
    """Refuse to touch what may come from anybody with an old version; Raises: ConfigError."""
    for sentence in below(*packages):
        raise ConfigError(sentence)


@cache
def installed(package: str) -> str:
    """The version that is there."""
    return metadata.version(package)
