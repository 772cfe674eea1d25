"""Nothing foreign is run: what an attacker may hand over stays data (X3, X4, X7, X9)."""

import ast
import json
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from watching import CHANGES, CODE, PROCESSES, TALK, watched

import gan
from gan import checkpoint
from gan.build import build
from gan.commands import composing, train
from gan.config import plain
from gan.config.check import check
from gan.data import sheets
from gan.data.sources import guess, kind
from gan.registry import ConfigError, create
from gan.run.rundir import finished, hold, previous

ROOT = Path(gan.__file__).parents[1]
SLOW = pytest.mark.slow
PACKAGE = sorted(Path(gan.__file__).parent.rglob("*.py"))


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_the_hook_sees_harm(tmp_path):
    with watched(CODE, TALK, PROCESSES, CHANGES) as seen:
        pickle.loads(pickle.dumps(Harm(tmp_path / "harm")))
        socket.socket().close()
        (tmp_path / "file").write_text("")
    assert {"os.mkdir", "socket.__new__", "open"} <= {event.split()[0] for event in seen}


# ---- X4, N4: the source itself -------------------------------------------------------------------

CALLS = {  # called anywhere: what is wrong with it
    "eval exec compile __import__": "runs code",
    "pickle.load pickle.loads marshal.loads shelve.open dill.load joblib.load": "unpickles",
    "torch.jit.load torch.hub.load": "runs code of a file",
    "yaml.unsafe_load yaml.full_load yaml.load_all": "builds objects",
    "os.system os.popen os.execv os.startfile": "runs a command",
    "hydra.utils.instantiate hydra.utils.call instantiate": "builds any class",
    "torch.nan_to_num numpy.nan_to_num np.nan_to_num nan_to_num": "hides what went wrong",
    "shutil.unpack_archive": "extracts",
}
ATTRIBUTES = {
    "extract": "extracts",
    "extractall": "extracts",
    "nan_to_num": "hides what went wrong",
    "nan_to_num_": "hides what went wrong",
    "MAX_IMAGE_PIXELS": "switches a guard of Pillow's off",
    "LOAD_TRUNCATED_IMAGES": "switches a guard of Pillow's off",
}
ONLY_IN = {  # allowed in these files alone
    "importlib.import_module": ("commands/train.py", "bench/peers.py"),  # plugins; peers
    "torch.export.load": ("trained/export.py",),  # of what it has just written, in memory
    "yaml.load": ("config/plain.py",),
}


TELLING = ("shell", "allow_pickle", "weights_only")


def offences(tree: ast.AST, file: str) -> list[str]:
    """What must not stand in a source file."""
    wrong = {name: why for names, why in CALLS.items() for name in names.split()}
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(f"{file}:{line} {node.attr} {ATTRIBUTES[node.attr]}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in TELLING}
        if name in wrong:
            found.append(f"{file}:{line} {name} {wrong[name]}")
        if name in ONLY_IN and not file.endswith(ONLY_IN[name]):
            found.append(f"{file}:{line} {name} belongs elsewhere")
        if given.get("shell", "False") != "False":
            found.append(f"{file}:{line} {name} starts a shell")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{file}:{line} {name} unpickles")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(f"{file}:{line} {name} unpickles")
        if name.endswith("yaml.load") and "_Plain" not in ast.unparse(node):
            found.append(f"{file}:{line} {name} builds objects")
    return found


@pytest.mark.row("X4", "source files: nothing that runs, unpickles, extracts or hides")
def test_the_source_holds_nothing_that_runs_what_it_reads(tried):
    trees = {str(file): ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE}
    assert [one for file, tree in trees.items() for one in offences(tree, file)] == []
    tried(len(trees))


PLANTED = [
    *("eval(text)", "exec(text)", "pickle.load(file)", "pickle.loads(data)", "os.system(text)"),
    *("subprocess.run(text, shell=True)", "np.load(file, allow_pickle=True)", "torch.load(file)"),
    *("torch.load(file, weights_only=False)", "torch.jit.load(file)", "torch.hub.load(name)"),
    *("yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "archive.extractall(folder)"),
    *("hydra.utils.instantiate(config)", "grad.nan_to_num_()", "torch.nan_to_num(grad)"),
    *("Image.MAX_IMAGE_PIXELS = None", "ImageFile.LOAD_TRUNCATED_IMAGES = True"),
    *("importlib.import_module(name)", "__import__(name)", "archive.extract(member)"),
]


@pytest.mark.parametrize("line", PLANTED)
def test_a_planted_line_is_found(line):
    assert offences(ast.parse(line), "gan/planted.py")


# ---- X3: targets ---------------------------------------------------------------------------------

TARGET = {"_target_": "os.mkdir", "path": "owned"}
PLACES = [
    *("generator", "recipe", "optimizer.generator", "schedule.discriminator", "trainer", "image"),
    *("adversarial", "classification", "average", "data", "clip.generator", "penalties.r1"),
    *("penalties", "reconstruction", "freeze", "rates", "trainer.n_critic", "generator.width"),
    *("optimizer.generator.betas", "seed", "run_dir", "resume", "plugins", "", "extra"),
]


@pytest.mark.row("X3", "targets, factories and tags in any place: refused, nothing called")
@pytest.mark.parametrize("form", ["section", "value"])
def test_a_target_is_refused_wherever_it_stands(form, composed, tried):
    config = composed("model=wnet")
    for place in PLACES:
        changed = json.loads(json.dumps(config))
        *parents, last = place.split(".") if place else [""]
        node = changed
        for key in parents:
            node = node[key]
        if form == "value" or not isinstance(node.get(last), dict):
            node[last] = TARGET
        else:
            node[last] |= TARGET
        with watched(PROCESSES, CHANGES) as seen, pytest.raises(ValueError, match=r"."):
            check(changed)
        assert seen == []
    tried(len(PLACES))


OVERRIDES = [
    "+hydra.callbacks.x={_target_: os.mkdir, path: owned}",
    "+hydra.callbacks={x: {_target_: os.mkdir, path: owned}}",
    "hydra.launcher._target_=os.mkdir",
    "hydra.sweeper._target_=os.mkdir",
    "+hydra.sweeper.sampler._target_=os.mkdir",
    "hydra.job_logging.handlers.console.class=os.mkdir",
    "+hydra.job_logging.handlers.x={class: os.mkdir}",
    "hydra.job_logging.handlers.console.stream=ext://os.mkdir",
    "+hydra.job_logging.formatters.x.class=os.mkdir",
    "+hydra.job.env_set.LD_PRELOAD=owned",
    "+generator._target_=os.mkdir",
    "+generator.inner={_target_: os.mkdir, path: owned}",
    "+penalties.r1._target_=os.mkdir",
    "trainer={_target_: os.mkdir}",
    "+_target_=os.mkdir",
    "data={_target_: os.mkdir, path: owned}",
    "--experimental-rerun=config.pickle",
    "--exp=config.pickle",
]


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Harm(tmp_path / "owned")))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        return train.main(arguments), capfd.readouterr().err

    return call


@pytest.mark.row("X3")
@pytest.mark.parametrize("part", [slice(0, 18, 9), pytest.param(slice(0, 18), marks=SLOW)])
def test_no_override_names_code(part, command, tried):
    for override in OVERRIDES[part]:
        status, said = command("model=dcgan", "run_dir=run", override)
        assert status == 2, override
        assert "gan: " in said
        assert sorted(os.listdir()) == ["config.pickle"], override
    tried(len(OVERRIDES[part]))


@pytest.mark.row("F1")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("-m --cfg hydra", "--multirun and --cfg exclude each other"),
        ("--cfg=job --multi", "--multirun and --cfg exclude each other"),
        ("-r --info config", "--run and --info exclude each other"),
        ("--resolve", "--resolve needs --cfg job"),
    ],
)
def test_options_that_exclude_each_other_are_refused_in_a_sentence(command, options, named, tried):
    status, said = command("model=dcgan", *options.split())
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith(f"gan: {named}")
    tried(1)


def test_help_may_stand_beside_any_option():
    composing.require_options(["-m", "--help"])


FILES = [
    "hydra: {callbacks: {x: {_target_: os.mkdir, path: owned}}}",
    "hydra: {job_logging: {handlers: {x: {'()': os.mkdir, path: owned}}}}",
    "hydra: {hydra_logging: {filters: {x: {'()': os.mkdir, path: owned}}}}",
    "hydra: {launcher: {_target_: os.mkdir}}",
    "generator: {_target_: os.mkdir, path: owned}",
    "recipe: {inner: [{_target_: os.mkdir, path: owned}]}",
    "trainer: {steps: !!python/object/apply:os.mkdir [owned]}",
    "seed: !!python/name:os.mkdir ''",
]


@pytest.mark.row("X3")
@pytest.mark.parametrize("part", [slice(0, 8, 6), pytest.param(slice(0, 8), marks=SLOW)])
def test_no_file_of_settings_names_code(part, command, tmp_path, tried):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for text in FILES[part]:
        Path("conf/experiment/theirs.yaml").write_text(f"# @package _global_\n{text}\n")
        status, said = command(
            f"--config-dir={tmp_path}/conf", "experiment=theirs", "run_dir=run", "model=dcgan"
        )
        assert status == 2, text
        assert "Traceback" not in said
        assert sorted(os.listdir()) == ["conf", "config.pickle"], text
    tried(len(FILES[part]))


def test_hydra_acts_on_targets_without_the_guard(command, monkeypatch):
    monkeypatch.setattr(composing, "require_values", lambda _: None)
    with pytest.warns(UserWarning, match="Callback"):
        command("model=dcgan", "seed=-1", OVERRIDES[0])
    assert Path("owned").exists()


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


STORED = {
    "a target": "model: dcgan\ngenerator: {_target_: os.mkdir, path: owned}\n",
    "a tag": "model: !!python/object/apply:os.mkdir [owned]\n",
    "a new object": "seed: !!python/object/new:os.mkdir {args: [owned]}\n",
    "a resolver": "seed: ${oc.env:HOME}\nrun_dir: ${job_folder:x}\n",
    "a bomb of aliases": bomb(),
    "depth": "[" * 5_000,
    "a page": "a: " + "x" * (2 << 20),
    "no mapping": "- 1\n",
    "no text": "\0\1\2",
}


@pytest.mark.row("X3")
def test_a_hostile_stored_configuration_is_data(composed, tmp_path, tried):
    checked = check(composed("model=dcgan"))
    for form, text in STORED.items():
        run = tmp_path / form
        numbers = {"networks": {}, "optimizers": {}, "state": {}}
        checkpoint.save(run / "checkpoints", 1, run_id="theirs", config=text, **numbers)
        (run / "config.yaml").write_text(text)
        (run / "finished.json").write_text('{"step": 1000000000}')
        hold(run)  # its lock is all that a start writes here
        parts = PROCESSES, CHANGES, TALK, ("exec",)
        with watched(*parts) as seen:
            assert not finished(replace(checked, run_dir=run))
            with pytest.raises(ConfigError) as said:
                previous(run, "auto", checked.values, print)
        assert seen == [], form
        assert len(str(said.value)) < 2000, form
        assert not Path("owned").exists(), form
    tried(len(STORED))


def test_aliases_would_multiply_without_the_loader():
    with pytest.raises(ValueError, match="aliases are refused"):
        plain.parsed(bomb(3))
    assert len(str(yaml.safe_load(bomb(4)))) > 9**4


def test_only_registered_names_are_created():
    for name in ("os.system", "builtins.eval", "torch.load", "../r1", "", None, 3):
        with pytest.raises(ConfigError, match="there is no penalty"):
            create("penalty", name)


# ---- hostile indices -----------------------------------------------------------------------------


@pytest.mark.row("X6")
@pytest.mark.parametrize("text", ["[" * 200_000, '{"cell": ' * 50_000, "\x80\x04", "{}", "null"])
def test_a_hostile_index_of_sheets_is_refused(text, tmp_path):
    (tmp_path / "index.json").write_text(text, encoding="latin1")
    with watched(PROCESSES, TALK) as seen:
        kind(tmp_path)
        with pytest.raises(ValueError, match=r"index\.json"):
            sheets.read_index(tmp_path)
    assert seen == []


# ---- sockets and secrets -------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch) -> Iterator[None]:
    """Every socket is an error."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.mark.row("X10", "building, training, sampling and verifying open no socket")
@pytest.mark.usefixtures("offline")
def test_nothing_opens_a_socket(tiny, tmp_path, tried):
    from gan.data.store import build as build_store
    from gan.data.store import verify

    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = np.full((20, 20, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    with watched(TALK, writes=False) as seen:
        report = build_store(guess(tmp_path / "photos", 8), tmp_path / "a.lmdb")
        assert verify(report.path).damages == []
        for model in ("dcgan", "wnet"):
            config = tiny(model, "trainer.steps=2", "trainer.sample_every=1")
            trainer = build({**config, "run_dir": model}, say=lambda _: None)
            assert trainer.train()
            trainer.save()
    assert seen == []
    tried(4)


@pytest.mark.usefixtures("offline")
def test_a_socket_would_be_seen():
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.create_connection(("localhost", 1))


@pytest.mark.row("X9", "a secret of the environment: in no file of a run")
def test_the_environment_is_not_written_down(tiny, monkeypatch):
    monkeypatch.setenv("SOME_API_TOKEN", "s3cr3t-0f-th3-us3r")
    assert build(tiny("dcgan", "trainer.steps=1"), say=lambda _: None).train()
    written = [file for file in Path("run").rglob("*") if file.is_file()]
    assert len(written) > 5
    assert not [file for file in written if b"s3cr3t-0f" in file.read_bytes()]


@pytest.mark.row("X7", "TensorBoard is shown on localhost alone")
def test_documents_keep_tensorboard_on_localhost():
    texts = [*ROOT.glob("*.md"), *ROOT.glob(".github/*.md"), *ROOT.glob(".ci/*"), *PACKAGE]
    commands = [
        line
        for file in texts
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*\$?\s*tensorboard\b", line)
    ]
    assert commands
    assert not [line for line in commands if open_to_all(line)]
    assert open_to_all("tensorboard --logdir runs --bind_all")
    assert open_to_all("tensorboard --logdir runs --host 0.0.0.0")
    assert not open_to_all("tensorboard --logdir runs --host localhost")


def open_to_all(command: str) -> bool:
    return bool(re.search(r"--bind_all|--host(?!.*localhost)", command))


# ---- the audit of dependencies -------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit():
    return runpy.run_path(str(ROOT / ".ci" / "audit.py"))


def test_an_audit_fails_for_a_known_vulnerability_alone(audit):
    sound = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    flaw = {"id": "CVE-1", "fix_versions": ["2"]}
    verdict = audit["verdict"]
    assert verdict(None, ["a"]) == (
        0,
        "audit: the vulnerability service cannot be reached; nothing was looked up",
    )
    assert verdict({"dependencies": [sound]}, ["a"])[0] == 0
    assert verdict({"dependencies": [sound, skipped]}, ["a", "b"]) == (
        0,
        "audit: the service answered for 1 of 2 packages only",
    )
    status, said = verdict({"dependencies": [sound | {"vulns": [flaw]}, skipped]}, ["a", "b"])
    assert status == 1
    assert "a 1: CVE-1, mended in 2" in said


def test_an_audit_without_its_tool_is_no_failure(audit, monkeypatch):
    missing = subprocess.CompletedProcess([], 1, "", "No module named pip_audit")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: missing)
    assert audit["asked"](["a==1"]) is None
