"""`gan train` and `train.py`: compose a configuration, check it, build a trainer, train."""

import gc
import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import gan  # fills the registries before anything is composed
from gan import distributed
from gan.commands import afterwards, show_crashes, spell_out, sweep
from gan.commands.composing import (
    CompositionError,
    UsageError,
    fitted,
    guarded,
    replaced,
    require_options,
)
from gan.commands.ranks import DIVERGED, MISTAKE, RankError, Ranks
from gan.config import check
from gan.config.signature import Count, coerce, nearest
from gan.registry import ConfigError, entry, names
from gan.run.saves import StorageError
from gan.run.signals import Stop
from gan.step.guard import DivergedError

NAMED = tuple(f"{section}{sign}" for section in check.NAMED for sign in (".", "={"))
if TYPE_CHECKING:
    from gan.trainer import Trainer

INVISIBLE = (
    "processes",
    "resume",
    "run_dir",
    "sweep",
    "trainer.best",
    "trainer.device",
    "trainer.evaluate",
    "trainer.inception",
    "trainer.judges",
    "trainer.lpips",
    "trainer.vgg16",
)  # no part of a job folder's name


def conf_dir() -> Path:
    """The checkout's `conf/`, or the one inside the installed package."""
    package = Path(gan.__file__).parent
    beside = package.parent / "conf"
    return beside if (beside / "config.yaml").exists() else package / "conf"


def job_folder(overrides: str) -> str:
    """A folder name for a job of a multirun: its sorted overrides, made safe and short enough.

    Where another character than those of lists and mappings is replaced, a digest tells of which.
    """
    kept = [
        part for part in overrides.split(",") if part.split("=")[0].lstrip("+~") not in INVISIBLE
    ]
    visible = ",".join(kept)
    name = re.sub(r"[^\w.=,+~-]", "_", visible) or "defaults"
    digest = hashlib.sha256(visible.encode()).hexdigest()[:8]
    whole = len(name.encode()) <= 200 and re.fullmatch(r"[\w.=,+~[\]{}:-]*", visible)
    cut = name.encode()[:190].decode(errors="ignore")  # file systems count bytes
    return name if whole else f"{cut}-{digest}"


OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="config")
def job(config: DictConfig) -> float | None:
    """One training run, alone or as a job of a multirun, whose search goes by the number."""
    with sweep.stoppable() as stop:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return _of_sweep(config, stop)
        _alone(config, stop)
        return None


def _alone(config: DictConfig, stop: Stop) -> None:
    try:
        values = plain(config)
        trainer = built(values, stop)
    except (ValueError, OSError) as error:
        if _verbose():
            raise
        raise SystemExit(fail(error)) from error  # Hydra adds nothing to this one
    try:
        done = trainer.train()
    except RankError as error:
        if error.status == MISTAKE:  # the rank has said which
            raise SystemExit(MISTAKE) from error
        raise
    if not done:
        raise KeyboardInterrupt
    afterwards.evaluate(values, stop)


def _of_sweep(config: DictConfig, stop: Stop) -> float | None:
    """What is finished is not trained again; a run that diverges does not end a search."""
    gc.collect()  # the last job's trainer, which refers to itself
    hydra_config = HydraConfig.get()
    sweep.join_tasks()
    try:
        with sweep.recorded(*sweep.place(hydra_config)), distributed.group():
            return _trained(config, stop, hydra_config)
    except sweep.JobError as error:
        if sweep.searches(hydra_config) and _diverged(error.__cause__):
            return sweep.worst(hydra_config)
        raise sweep.lightened(error) from error.__cause__


def _trained(config: DictConfig, stop: Stop, hydra_config: Any) -> float | None:
    """A job's training and its value; the trainer is gone when this returns."""
    try:
        values = plain(config)
        settings = values.get("trainer")
        best = settings.get("best") if isinstance(settings, dict) else None
        sweep.require_search(hydra_config, best)
        trainer = None if sweep.finished(values) else built(values, stop)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if trainer is not None and not trainer.train():
        raise KeyboardInterrupt
    afterwards.evaluate(values, stop)
    if distributed.rank():
        return None
    return sweep.value(hydra_config, Path(values["run_dir"]), best)


def _diverged(error: BaseException | None) -> bool:
    told = isinstance(error, RankError) and error.status == DIVERGED
    return told or isinstance(error, DivergedError)


def built(values: dict[str, Any], stop: Stop) -> "Trainer | Ranks":
    """What trains these values: a trainer, or processes with one each."""
    import_plugins(values.get("plugins") or [])
    distributed.spare_a_core()
    count = coerce(Count, values.get("processes", 1), "processes")
    if count > 1 and distributed.size() > 1:
        raise UsageError(
            f"processes={count} would start more of them in each of the {distributed.size()} that "
            "torchrun or the launcher has started: leave it out, or start one"
        )
    devices = sweep.own_devices(count)
    if count > 1:
        return Ranks(values, count, stop, devices)
    if devices:
        torch.cuda.set_device(devices[0])
    from gan.build import build  # imports torch's and TensorBoard's slower parts

    try:
        with stop.interrupting():
            return build(values, stop=stop)
    except KeyboardInterrupt:
        distributed.say(f"stopped by {stop.name} before training; the same command goes on")
        raise


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed values, interpolated; each job of a multirun has a run directory of its own."""
    run = HydraConfig.get()
    try:
        replaced(config, run.overrides.task)
        import_plugins(config.get("plugins") or [])  # a job may be a process of its own
        for said in fitted(config, run.overrides.task):
            distributed.say(said)
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UsageError(explained(error)) from error
    if run.mode == RunMode.MULTIRUN:
        folder, name = sweep.place(run)
        values["run_dir"] = str(folder / name)
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; exit status 0: finished, 2: the user's mistake, 1: the rest."""
    show_crashes()
    spell_out()
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.argv = [sys.argv[0], *(switched_on(argument) for argument in given)]
    call, failure = sweep.begin(), None
    with guarded() as composed:
        try:
            status = _called(given)
        except Exception as error:
            status, failure = 1, error
    swept = [c for c in composed if OmegaConf.select(c, "hydra.mode") == RunMode.MULTIRUN]
    if not swept:
        if failure is not None:
            raise failure
        return status
    if failure is not None:  # of a launcher: a job's own failure is a JobError
        traceback.print_exception(failure)
    return sweep.ended(sweep.folder(swept[0].hydra), call, status)


def _called(given: Sequence[str]) -> int:
    try:
        require_options(given)
        import_plugins(_named_plugins(given))  # what they register takes part in the composition
        with distributed.group(), _raising():
            job()
    except (KeyboardInterrupt, sweep.JobError):
        return 1
    except SystemExit as stop:
        return int(stop.code or 0)
    except distributed.FirstError:  # it has said why
        return 2
    except RankError as error:
        fail(error)
        return 1
    except (UsageError, ConfigError) as error:
        if _verbose():
            raise
        return fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        if _verbose():
            raise
        return 2 if distributed.rank() else fail(explained(error))  # all say the same
    except yaml.YAMLError as error:  # it says in which file and line
        return fail(" ".join(str(error).split()))
    except (FloatingPointError, StorageError, TimeoutError, ConnectionError) as error:
        fail(error)
        return 1
    return 0


@contextmanager
def _raising() -> Iterator[None]:
    """Hydra raises what goes wrong instead of printing it and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


def import_plugins(modules: Iterable[str]) -> None:
    """Import a user's own modules, from the current folder or Python's path."""
    if isinstance(modules, str):
        raise UsageError(f"plugins must be a list of modules, as in plugins=[{modules}]")
    for name in modules:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name)
        except (ConfigError, ImportError, SyntaxError) as error:
            raise UsageError(f"plugins=[{name}]: {error}") from error
        except Exception as error:  # a module of the user's may raise anything
            raise UsageError(f"plugins=[{name}]: {type(error).__name__}: {error}") from error


def _named_plugins(arguments: Iterable[str]) -> list[str]:
    values = [a.split("=", 1)[1] for a in arguments if a.lstrip("+").startswith("plugins=")]
    names = (name.strip(" \"'") for value in values for name in value.strip("[]").split(","))
    return [name for name in names if name]


def explained(error: Exception, files: Callable[[], Mapping[str, Any]] = dict) -> str:
    """One sentence for what could not be composed, with the nearest known name in the files."""
    if isinstance(error, CompositionError):
        return explained(error.cause, error.files)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"there is no {group} {name!r}; {nearest(name, error.options)}"
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, _sentence(error))
    if isinstance(error, OmegaConfBaseException):
        return _uninterpolated(error)
    if "Did you mean to override" in str(error):
        return _placeless(str(error))
    unknown = re.search(r"Could not (?:override|delete)\w* '([^']+)'", str(error))
    known = files() if unknown else {}
    return _refused(unknown.group(1), known) if unknown and known else _sentence(error)


def _uninterpolated(error: OmegaConfBaseException) -> str:
    """The key of the value, and of what it names the nearest that there is."""
    said, node = _sentence(error), error.child_node
    unknown = re.search(r"Interpolation key '([^']+)' not found", said)
    if unknown and node is not None and f"${{{unknown.group(1)}}}" in str(node._value()):
        said = _unknown_key(unknown.group(1), OmegaConf.to_container(node._get_root())) or said
    return f"{error.full_key}: {said}" if error.full_key else said


def _refused(key: str, files: Mapping[str, Any]) -> str:
    """A key that does not exist, or exists only once a sweep has chosen its part."""
    if key.startswith("hydra."):
        return f"{key} is no setting of Hydra's, or needs a + before it"
    later = f"{key} is not there yet where Hydra overrides it: write ++{key}=VALUE"
    return _unknown_key(key, files) or later


def _placeless(said: str) -> str:
    """Of `optimizer=adam`, where each player has an optimizer of its own."""
    where, key = re.findall(r"(.*)Could not override '(.+)'\.", said)[0]
    places = re.findall(r"override (?:one of )?(.+)\?", said)[0].split(", ")
    value = "".join(re.findall(r"use \+[^=]+(=.*)", said))
    return f"{where}{key}{value} chooses nothing: write {' or '.join(p + value for p in places)}"


def _unreadable(override: str, said: str) -> str:
    """Hydra's grammar has few characters outside quotes, which the shell must leave alone."""
    key, _, value = override.partition("=")
    if not value:
        return f"{override} needs a value, as KEY=VALUE"
    if re.match(r"(\w:)?\\[^'\"]*$", value):  # a folder of Windows', whose shells differ
        quoted = value.replace("\\", "/")
        return f"{override} cannot be read: put the value in quotes, as \"{key}='{quoted}'\""
    if set(value) & set("'\"\\") or value[0] in "[{":
        return f"{override} is not written as Hydra wants lists, mappings and quoted words: {said}"
    return f"{override} cannot be read: put the value in quotes, as '{key}=\"{value}\"'"


def _unknown_key(key: str, node: Any) -> str | None:
    """Name the nearest key at the deepest level that exists; None where all of it does."""
    node = {**node, "experiment": None}
    done: list[str] = []
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return f"{key} is unknown: {'.'.join(done)} has no keys of its own"
        if part not in node:
            path = ".".join([*done, part])
            chosen = f" to {'.'.join(done)}={node['name']}" if done and "name" in node else ""
            kind = done[0] if done else ""
            takers = [n for n in names(kind) if part in entry(kind, n).parameters]
            hint = f"taken by {' and '.join(takers)}; " if takers else ""
            known = [k for k in node if k != "name"]
            return f"{path} is unknown{chosen}; {hint}{nearest(part, known)}"
        node = node[part]
        done.append(part)
    return None


def switched_on(argument: str) -> str:
    """An argument as Hydra wants it: a penalty needs no `+`, as in `penalties.r1.weight=10`.

    Nor does a mapping of them, as in `penalties={r1: {weight: 10}}`.
    """
    return f"++{argument}" if argument.startswith(NAMED) else argument


def _verbose() -> bool:
    """Whether the user wants tracebacks of mistakes."""
    return os.environ.get("GAN_TRACEBACK") == "1"


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def fail(sentence: object) -> int:
    """Say what is wrong, and of which process; the exit status of a mistake."""
    who = f", rank {distributed.rank()}" if distributed.rank() else ""
    print(f"gan{who}: {sentence}", file=sys.stderr)
    return 2
