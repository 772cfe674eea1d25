"""Names for everything a configuration can choose: a signature becomes a checked Hydra node.

`@register("penalty", "r1")` reads the signature of a class or function and stores its parameters
and defaults in Hydra's ConfigStore as `penalty/r1`. `create` checks values against the signature
and builds. Nothing but a registered name is ever built.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore

from gan.config.signature import (
    ConfigError,
    Count,
    Fraction,
    NonNegative,
    Positive,
    Whole,
    conform,
    listed,
    nearest,
    require_plain,
)

__all__ = [
    "ConfigError",
    "Count",
    "Fraction",
    "NonNegative",
    "Positive",
    "Whole",
    "create",
    "names",
    "register",
]

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered name: what it builds and the parameters that may be configured."""

    kind: str
    name: str
    build: Any  # class or function; what else it offers depends on its kind
    parameters: Mapping[str, inspect.Parameter]
    given: tuple[str, ...]

    def create(self, values: Mapping[str, Any], path: str = "") -> Any:
        """Build from configured values and from the `given` ones, which pass unchecked."""
        configured = {key: value for key, value in values.items() if key not in self.given}
        given = {key: values[key] for key in self.given if key in values}
        path = path or f"{self.kind}.{self.name}"
        return self.build(**conform(self.parameters, configured, path), **given)


_entries: dict[str, dict[str, Entry]] = {}


def register(
    kind: str, name: str, given: Iterable[str] = (), **interpolations: str
) -> Callable[[T], T]:
    """Register a class or function under a name; its signature is its configuration.

    `given` parameters are handed over by code (a module, a fact of the data) and never configured;
    `interpolations` are defaults that follow another key, such as `size="${image.size}"`.
    """

    def add(build: T) -> T:
        signature = inspect.signature(build).parameters
        parameters = {key: value for key, value in signature.items() if key not in tuple(given)}
        require_plain(f"{kind}/{name}", parameters)
        if name in _entries.setdefault(kind, {}) and _entries[kind][name].build is not build:
            raise ConfigError(f"{kind}/{name} is registered already; choose another name")
        _entries[kind][name] = Entry(kind, name, build, parameters, tuple(given))
        defaults = {
            key: "???" if value.default is value.empty else listed(value.default)
            for key, value in parameters.items()
        }
        node = {"name": name, **defaults, **interpolations}
        ConfigStore.instance().store(group=kind, name=name, node=node, provider="gan")
        return build

    return add


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(_entries.get(kind, {}))


def entry(kind: str, name: str, path: str = "") -> Entry:
    """The entry of a name; an unknown one is refused with the nearest."""
    found = _entries.get(kind, {}).get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(
            f"{path or kind}: there is no {kind} {name!r}; {nearest(name, names(kind))}"
        )
    return found


def create(kind: str, name: str, **values: Any) -> Any:
    """Build a registered name with the same checks as the command line."""
    return entry(kind, name).create(values)
