"""What Hydra composes for a run: values alone. Whatever in it could name code to run is refused.

Hydra calls what its own section of a configuration names: callbacks, factories of log handlers,
variables of the environment. A file of somebody else's settings must not be able to.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from gan import distributed
from gan.config.check import NAMED
from gan.config.rehearsal import SIDES
from gan.config.signature import ConfigError, coerce, flat
from gan.registry import Entry, entry

PLUGINS = {  # what Hydra itself builds, out of installed plugins
    f"hydra.{part}._target_": ("hydra._internal.core_plugins.", "hydra_plugins.")
    for part in ("launcher", "sweeper")
} | {"hydra.sweeper.sampler._target_": ("optuna.samplers.",)}
CALLING = ("callbacks", "job.env_set", "sweeper.custom_search_space", "launcher.setup")
HANDLERS = ("logging.StreamHandler", "logging.FileHandler")
MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of Hydra's, one at a time
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
PIECEWISE = ("trainer.n_critic", "freeze", "rates", *NAMED)  # their keys are the user's own
FITTED = [f"{kind}.{side}" for kind in ("optimizer", "schedule") for side in SIDES]


class UsageError(ValueError):
    """Something the user gave that cannot be used: one sentence, exit status 2."""


@contextmanager
def guarded() -> Iterator[list[DictConfig]]:
    """Check every configuration that Hydra composes before it acts on it; gives them."""
    composed: list[DictConfig] = []
    load = ConfigLoaderImpl.load_configuration

    def checked(*arguments: Any, **options: Any) -> DictConfig:
        config = load(*arguments, **options)
        require_values(OmegaConf.to_container(config))
        replaced(config, OmegaConf.select(config, "hydra.overrides.task") or ())
        if OmegaConf.select(config, "hydra.mode") == RunMode.MULTIRUN:
            _require_one_process()
        composed.append(config)
        return config

    with mock.patch.object(ConfigLoaderImpl, "load_configuration", checked):
        yield composed


def _require_one_process() -> None:
    with distributed.first():  # it says why
        if distributed.size() > 1:
            raise UsageError(
                "a multirun starts the processes of its jobs itself: leave torchrun out, and say "
                "how many as in train.py -m processes=2 seed=0,1"
            )


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
    given = [o for o in _parsed(overrides) if not o.is_sweep_override()]
    for key in PIECEWISE:
        inside = [o for o in given if f"{o.key_or_group}.".startswith(f"{key}.")]
        whole = [o for o in inside if o.key_or_group == key and isinstance(o.value(), dict)]
        if whole:
            with open_dict(config):
                OmegaConf.update(config, key, {}, merge=False)
                again = inside[inside.index(whole[-1]) :]
                ConfigLoaderImpl._apply_overrides_to_config(again, config)


def fitted(values: dict[str, Any], overrides: Iterable[str]) -> list[str]:
    """Leave out what a preset sets for an optimizer or a schedule and another one does not take.

    That other one is chosen by the command line, whose own values stay. Returns what to say of it.
    """
    given, said = _parsed(overrides), []
    written = {key for o in given for key in flat({o.key_or_group: o.value()})}
    for section in [o.package for o in given if o.package in FITTED and not o.is_delete()]:
        kind, side = section.split(".")
        node = values[kind][side]
        chosen = entry(kind, node["name"], f"{section}.name")
        for key in [k for k in node if f"{section}.{k}" not in written]:
            if not _takes(chosen, key, node[key]):
                said.append(
                    f"{section}.{key}={node.pop(key)} of the preset is left out: {chosen.name} "
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


def _parsed(overrides: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))
