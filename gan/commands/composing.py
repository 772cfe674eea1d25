"""What Hydra composes for a run: values alone. Whatever in it could name code to run is refused.

Hydra calls what its own section of a configuration names: callbacks, factories of log handlers,
variables of the environment. A file of somebody else's settings must not be able to.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from gan import distributed
from gan.config.check import NAMED
from gan.config.signature import ConfigError, coerce, flat, nearest
from gan.registry import Entry, entry, names
from gan.step.guard import SIDES

PLUGINS = {  # what Hydra itself builds, out of installed plugins
    f"hydra.{part}._target_": ("hydra._internal.core_plugins.", "hydra_plugins.")
    for part in ("launcher", "sweeper")
} | {"hydra.sweeper.sampler._target_": ("optuna.samplers.",)}
CALLING = ("callbacks", "job.env_set", "sweeper.custom_search_space", "launcher.setup")
HANDLERS = ("logging.StreamHandler", "logging.FileHandler")
MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of Hydra's, one at a time
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
PIECEWISE = ("trainer.n_critic", "freeze", "rates", *NAMED)  # their keys are the user's own
FITTED = ["recipe", "adversarial", "average", *SIDES]  # whose settings go with them
FITTED += [f"{kind}.{side}" for kind in ("optimizer", "schedule") for side in SIDES]


class UsageError(ValueError):
    """Something the user gave that cannot be used: one sentence, exit status 2."""


class CompositionError(HydraException):
    """What Hydra could not compose."""

    def __init__(self, cause: Exception, files: Callable[[], dict[str, Any]]) -> None:
        """The error of Hydra's; `files` composes the same without the keys of the command line."""
        super().__init__(str(cause))
        self.cause, self.files = cause, files


@contextmanager
def guarded() -> Iterator[list[DictConfig]]:
    """Check every configuration that Hydra composes before it acts on it; gives them."""
    composed: list[DictConfig] = []
    load = ConfigLoaderImpl.load_configuration

    def checked(
        loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str], **options: Any
    ) -> DictConfig:
        try:
            _require_words(loader, overrides)
            config = load(loader, config_name, overrides, **options)
        except (HydraException, ValueError) as error:
            raise CompositionError(
                error, partial(_files, loader, config_name, overrides)
            ) from error
        require_values(OmegaConf.to_container(config))
        given = OmegaConf.select(config, "hydra.overrides.task") or ()
        replaced(config, given)
        mode = OmegaConf.select(config, "hydra.mode")
        if mode == RunMode.MULTIRUN:
            _require_one_process()
            _require_one_folder(config, given)
        if mode is None:  # to be shown: before a run `plain` does it, and says so
            fitted(config, given)
        else:
            _require_made(config, "sweep" if mode == RunMode.MULTIRUN else "run")
        composed.append(config)
        return config

    with mock.patch.object(ConfigLoaderImpl, "load_configuration", checked):
        yield composed


def _require_words(loader: ConfigLoaderImpl, overrides: Iterable[str]) -> None:
    """Refuse what could name no file of a group: Hydra would not say of which key."""
    for given in parsed(overrides):
        key, value = given.key_or_group, given.value()
        words = all(
            isinstance(word, str) for word in (value if isinstance(value, list) else [value])
        )
        if words or isinstance(value, dict) or given.is_delete() or given.is_sweep_override():
            continue
        # the loader's own method copies all that is registered, each time
        if options := loader.repository.get_group_options(key):
            raise UsageError(f"{given.input_line} names no {key}; {nearest(value, options)}")


def _require_one_process() -> None:
    with distributed.first():  # it says why
        if distributed.size() > 1:
            raise UsageError(
                "a multirun starts the processes of its jobs itself: leave torchrun out, and say "
                "how many as in train.py -m processes=2 seed=0,1"
            )


def _require_one_folder(config: DictConfig, overrides: Iterable[str]) -> None:
    if not config.hydra.sweep.dir:
        raise UsageError("hydra.sweep.dir must name the folder of a multirun")
    for given in parsed(overrides):
        key = given.key_or_group
        follows = key == "run_dir" and "${" in str(given.value())
        if follows or key in ("run_dir", "sweep") and given.is_sweep_override():
            raise UsageError(
                f"{key}={given.get_value_string()} cannot be the folder of a multirun, which is "
                "one for all its jobs: write a folder out, or name it by sweep=NAME"
            )


def _require_made(config: DictConfig, kind: str) -> None:
    """Make the folder of Hydra's; it would not say of which key."""
    try:
        Path(config.hydra[kind].dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"hydra.{kind}.dir={config.hydra[kind].dir} cannot be made ({error.strerror}): choose "
            "another folder"
        ) from error


def _files(loader: ConfigLoaderImpl, name: str | None, overrides: list[str]) -> dict[str, Any]:
    """What the chosen files hold, without the keys of the command line.

    Of a sweep the first choice is taken. It is {} where the files cannot be composed either.
    """
    try:
        given = [_first(o) for o in OverridesParser.create(loader).parse_overrides(overrides)]
        keys = loader.compute_defaults_list(name, given, RunMode.RUN).config_overrides
        dropped = {o.input_line for o in keys if o.key_or_group != "hydra.searchpath"}
        config = loader._load_configuration_impl(
            name, [word for word in given if word not in dropped], RunMode.RUN
        )
    except Exception:  # the error that is being explained says enough
        return {}
    values = cast(dict[str, Any], OmegaConf.to_container(config))
    return {key: value for key, value in values.items() if key != "hydra"}


def _first(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


def require_values(node: Any, path: str = "") -> None:
    """Refuse a composed configuration that names anything to be called.

    Raises: UsageError naming the key and its value.
    """
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in pairs:
        where = f"{path}.{key}" if path else str(key)
        if _names_code(str(key), where, value):
            raise UsageError(
                f"{where}={value!r} is refused: only registered names are built, and a "
                "configuration calls nothing; remove it, or register a part of yours by plugins="
            )
        if isinstance(value, Mapping | list):
            require_values(value, where)


def _names_code(key: str, where: str, value: Any) -> bool:
    if where in PLUGINS:
        return not str(value).startswith(PLUGINS[where])
    if where in [f"hydra.{part}" for part in CALLING]:
        return bool(value)
    if where.startswith("hydra.") and key == "class":
        return value not in HANDLERS
    if isinstance(value, str) and value.startswith(("ext://", "cfg://")):
        return value not in STREAMS
    return key in ("_target_", "()")


def require_options(arguments: Iterable[str]) -> None:
    """Refuse the option of Hydra's that unpickles a file, and options that exclude each other."""
    given = get_args_parser().parse_args(list(arguments))
    if given.experimental_rerun:
        raise UsageError("--experimental-rerun is refused: it unpickles a file, which may run code")
    if given.help or given.hydra_help:
        return
    modes = [f"--{mode}" for mode in MODES if getattr(given, mode)]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} exclude each other: choose one of them")
    if given.resolve and not given.cfg:
        raise UsageError("--resolve needs --cfg job beside it")


def replaced(config: DictConfig, overrides: Iterable[str]) -> None:
    """Put whole mappings of the command line in place of what Hydra has merged them into.

    `trainer.n_critic={0: 1}` means these pieces, and not these beside the pieces of a preset. What
    follows is added: `penalties={} penalties.r1.weight=10` leaves this penalty alone.
    """
    given = [o for o in parsed(overrides) if not o.is_sweep_override()]
    for key in PIECEWISE:
        inside = [o for o in given if f"{o.key_or_group}.".startswith(f"{key}.")]
        whole = [o for o in inside if o.key_or_group == key and isinstance(o.value(), dict)]
        if whole:
            with open_dict(config):
                OmegaConf.update(config, key, {}, merge=False)
                again = inside[inside.index(whole[-1]) :]
                ConfigLoaderImpl._apply_overrides_to_config(again, config)


def fitted(config: DictConfig, overrides: Iterable[str]) -> list[str]:
    """Leave out what a preset sets for a part, such as an optimizer, and another does not take.

    That other one is chosen by the command line, whose own values stay. Returns what to say of it.
    """
    given, said = parsed(overrides), []
    written = {key for o in given for key in flat({o.key_or_group: o.value()})}
    named = {o.package or o.key_or_group for o in given if not o.is_delete()}
    for section in [section for section in FITTED if section in named]:
        kind, node = section.split(".")[0], OmegaConf.select(config, section)
        if not isinstance(node, DictConfig) or node.get("name") not in names(kind):
            continue  # which the check tells of
        chosen = entry(kind, node.name)
        values = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
        for key in [k for k in values if f"{section}.{k}" not in written]:
            if not _takes(chosen, key, values[key]):
                with open_dict(node):
                    del node[key]
                said.append(
                    f"{section}.{key}={values[key]} of the preset is left out: {chosen.name} "
                    "does not take it"
                )
    return said


def _takes(chosen: Entry, key: str, value: Any) -> bool:
    if key == "name" or value == "???":  # which is told of when it is missing
        return True
    try:
        coerce(chosen.parameters[key].annotation, value, key)
    except (KeyError, ConfigError):
        return False
    return True


def parsed(overrides: Iterable[str]) -> list[Override]:
    """The overrides of a command line, as they were written: a ListConfig would interpolate."""
    if isinstance(overrides, ListConfig):
        overrides = cast(list[str], OmegaConf.to_container(overrides, resolve=False))
    return OverridesParser.create().parse_overrides(list(overrides))
