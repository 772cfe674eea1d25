"""Checkpoints whose bytes were changed and whose hashes were written anew, as anyone can."""

import hashlib
import json
import os
import random
import shutil

import pytest
from small import trainer
from test_checkpoint import FILES, seal

from gan.checkpoint import CheckpointError

pytestmark = pytest.mark.usefixtures("quick_disk")
SEED = 30


def mutated(data, chance):
    """Bytes with a few of them changed, cut out, doubled or put in; more often near the start."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        near = chance.random() < 0.5
        place = chance.randrange(min(len(data), 64 if near else len(data)) or 1)
        length = chance.choice([1, 1, 4, 40])
        part = data[place : place + length]
        new = chance.choice([b"", part * 2, chance.randbytes(len(part)), chance.randbytes(length)])
        data[place : place + length] = chance.choice([new, new.translate(DIGITS)])
    return bytes(data)


DIGITS = bytes(b'0123456789-.eE{}[]",: '[i % 22] for i in range(256))  # what keeps JSON likely


def resealed(path, name, data):
    """Put the bytes into a checkpoint, and their length and hash into its manifest."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    for entry in manifest["files"]:
        if entry["name"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(path, manifest)


def survived(folder, count):
    """How many of so many fuzzed checkpoints were refused, and how many loaded."""
    chance, refused = random.Random(SEED), 0
    run = trainer(folder, steps=2)
    run.train()
    sound = folder / "checkpoints" / "step-00000002"
    for number in range(count):
        path = shutil.copytree(sound, folder / "fuzzed" / sound.name)
        name = FILES[number % 3]  # the text of config.yaml is not parsed here
        resealed(path, name, mutated((path / name).read_bytes(), chance))
        try:
            run.resume(path)
        except CheckpointError as error:
            refused += 1
            assert any(w in str(error) for w in (str(path), "does not fit"))  # noqa: PT017
        except Exception as error:
            raise AssertionError(f"{name}, case {number}: {error!r}") from error
        shutil.rmtree(folder / "fuzzed")
    return refused, count - refused


@pytest.mark.row("X2", "fuzzed checkpoints with new hashes: own exception or numbers, 0 deaths")
@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.slow)])
def test_fuzzed_checkpoints_are_refused_or_are_numbers(tmp_path, count, tried):
    child = os.fork()
    if not child:
        try:
            refused, loaded = survived(tmp_path, count)
            os._exit(0 if min(refused, loaded) > 0 else 3)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    tried(count)
