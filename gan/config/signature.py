"""What a signature says of its arguments: types and ranges, checked; messages name the key."""

import difflib
import inspect
import math
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin


class ConfigError(ValueError):
    """A setting that cannot be used: the message names the key, the value and the way out."""


class Bounds(NamedTuple):
    """The closed range of a number; `above` excludes the lower end."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in the range."""
        assert isinstance(value, int | float)
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        """The range in words."""
        low = f"{'greater than' if self.above else 'at least'} {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


LARGEST = 2**63 - 1  # what libraries take as a whole number

Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
NonNegative = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]

SHAPE = {"size": "${image.size}", "channels": "${image.channels}"}  # of images, to interpolate


def nearest(word: Any, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, then all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(known) or 'none'}"
    return f"did you mean {close[0]!r}? ({listed})" if close else listed


def conform(parameters: Mapping[str, Any], values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Compare values with a signature's parameters and return the arguments it is called with.

    Raises: ConfigError naming `path.key` for an unknown, missing, mistyped or out-of-range value.
    """
    for key in values:
        if key.startswith("_") and key.endswith("_"):
            raise ConfigError(f"{path}.{key} is refused: only registered names are built")
        if key not in parameters:
            raise ConfigError(f"{path}.{key} is unknown; {nearest(key, parameters)}")
    arguments = {}
    for key, parameter in parameters.items():
        if key in values and not (isinstance(values[key], str) and values[key] == "???"):
            arguments[key] = coerce(parameter.annotation, values[key], f"{path}.{key}")
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{key} must be given")
        else:
            arguments[key] = parameter.default
    return arguments


def coerce(annotation: Any, value: Any, path: str) -> Any:
    """The value as the annotated type; whole numbers pass for floats, lists for tuples.

    Raises: ConfigError naming the path, the value and what was expected.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty):
        return value
    if origin is Annotated:
        return _within(parts[1], coerce(parts[0], value, path), path)
    if origin in (Union, types.UnionType):
        return _first(parts, value, path)
    if origin is Literal:
        return _one_of(parts, value, path)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return _sequence(origin, parts, value, path)
    if origin is dict and isinstance(value, Mapping):
        return {
            coerce(parts[0], k, path): coerce(parts[1], v, f"{path}.{k}") for k, v in value.items()
        }
    if annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, path)
    if annotation is int and isinstance(value, float) and value.is_integer():
        raise ConfigError(f"{path} must be a whole number written as {int(value):_}, not {value!r}")
    if annotation is int and type(value) is int and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"{path} must be at most {LARGEST}, not {value}")
    if isinstance(annotation, type) and type(value) is annotation:
        return value
    quoted = annotation is str and isinstance(value, int | float)  # of its digits, or true
    hint = f": put it in quotes, as '{path}=\"...\"'" if quoted else ""
    raise ConfigError(f"{path} must be {_words(annotation)}, not {value!r}{hint}")


def _within(bounds: Bounds, value: Any, path: str) -> Any:
    if value not in bounds:
        raise ConfigError(f"{path} must be {bounds}, not {value!r}")
    return value


def _finite(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number, not {value!r}")
    return float(value)


def _first(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    failures = []
    for option in options:
        if option is not types.NoneType:
            try:
                return coerce(option, value, path)
            except ConfigError as error:
                failures.append(str(error))
    raise ConfigError(failures[0] if len(failures) == 1 else "; or ".join(failures))


def _one_of(options: tuple[Any, ...], value: Any, path: str) -> Any:
    for option in options:
        if type(value) is type(option) and value == option:
            return option
    if isinstance(value, bool) and {"on", "off"} <= set(options):
        return "on" if value else "off"  # YAML reads an unquoted on or off as a boolean
    raise ConfigError(f"{path} cannot be {value!r}; {nearest(value, map(str, options))}")


def _sequence(origin: Any, parts: tuple[Any, ...], value: Iterable[Any], path: str) -> Any:
    items = list(value)
    if origin is tuple and parts[-1] is not Ellipsis:
        if len(items) != len(parts):
            raise ConfigError(f"{path} must hold {len(parts)} values, not {items!r}")
        pairs = list(zip(parts, items, strict=True))
    else:
        pairs = [(parts[0], item) for item in items]
    return origin(coerce(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))


def _words(annotation: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    fallback = {list: "a list", tuple: "a list", dict: "a mapping"}
    return words.get(annotation) or fallback.get(get_origin(annotation), str(annotation))


def listed(default: Any) -> Any:
    """A default as YAML writes it: tuples are lists there."""
    return list(default) if isinstance(default, tuple) else default


def require_plain(where: str, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a signature that cannot be configured: missing annotations, collected arguments."""
    for key, value in parameters.items():
        if value.kind in (value.VAR_KEYWORD, value.VAR_POSITIONAL) or isinstance(
            value.annotation, str
        ):
            raise ConfigError(
                f"{where}: parameter {key!r} needs a plain name and a real annotation"
            )
        if value.annotation is value.empty:
            raise ConfigError(
                f"{where}: parameter {key!r} needs an annotation, or a place in `given`"
            )


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = f"{path}{key}"
        result |= flat(value, f"{inner}.") if isinstance(value, Mapping) else {inner: value}
    return result
