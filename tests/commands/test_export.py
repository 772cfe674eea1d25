"""`gan export`: files that draw what the run draws, and the proof of it."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import gan
from gan.commands import main
from gan.trained import export

CONDITIONAL = ["recipe=conditional", "data.label=style", "discriminator.norm=none"]


def test_weights_and_program_are_the_averaged_generators(trained, capsys):
    trained("dcgan", *CONDITIONAL)
    assert main(["export", "run", "--out", "out"]) == 0
    assert "generator.pt2: differs by at most" in capsys.readouterr().out
    loaded = gan.load("run")
    stored = safetensors.torch.load_file("out/generator.safetensors")
    state = loaded.generator.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    program = torch.export.load("out/generator.pt2").module()
    noise, label = loaded.noise(7, seed=5), loaded.labels(7)
    drawn = loaded.draw(noise, label)
    assert torch.allclose(program(noise, label), drawn, atol=1e-4)
    raw = gan.load("run", "raw").draw(noise, label)
    assert (drawn - raw).abs().max() > 1e-3  # the check above would notice the raw weights


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pix2pix", "cyclegan"])
def test_translators_are_exported_with_their_noise(trained, capsys, model):
    trained(model, "data.style=style05")
    assert main(["export", "run", "--out", "out"]) == 0
    assert "generator.pt2: differs by at most" in capsys.readouterr().out
    program, generator = torch.export.load("out/generator.pt2").module(), gan.load("run").generator
    given = export.inputs(gan.load("run"), 5, seed=3)
    assert [*given] == {"pix2pix": ["input"], "cyclegan": ["a", "b"]}[model]
    drawn = []
    for call in (program, generator):
        torch.manual_seed(1)
        with torch.no_grad():
            images = call(*given.values())
        drawn.append(torch.cat([images] if torch.is_tensor(images) else images))
    assert len(drawn[0]) == 5 * len(given)
    assert torch.allclose(*drawn, atol=1e-4)
    with torch.no_grad():
        again = program(*given.values())
    again = torch.cat([again] if torch.is_tensor(again) else again)
    assert torch.equal(again, drawn[0]) == (model == "cyclegan")  # dropout is noise, and stays


def test_onnx_takes_no_noise_of_torchs_own(trained, tmp_path, capsys):
    trained("pix2pix", "data.style=style05")
    assert main(["export", "run", "--out", "out", "--onnx"]) == 2
    out, err = capsys.readouterr()
    assert "--onnx takes no dropout that stays on, as that of run" in err
    assert "train with generator.noise=false" in err
    assert "generator.pt2: differs by at most" in out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"generator.safetensors", "generator.pt2"}


def test_a_program_that_draws_something_else_is_not_written(trained, monkeypatch, capsys):
    trained("dcgan")
    real = export.checked

    def off(run, called):
        return real(run, lambda given: called(given) + 2e-4)

    monkeypatch.setattr(export, "checked", off)
    assert main(["export", "run", "--out", "out"]) == 1
    assert "differs by 0.0002 from the original, more than 0.0001" in capsys.readouterr().err
    assert not (gan.runs.Path("out") / "generator.pt2").exists()


@pytest.mark.parametrize("change", [lambda t: t + 1, lambda t: t.double(), lambda t: t[None]])
def test_weights_that_are_others_when_read_again_are_not_written(
    trained, monkeypatch, capsys, change
):
    trained("dcgan")
    real = safetensors.torch.save

    def off(state, facts):
        name, *_ = state
        return real({**state, name: change(state[name])}, facts)

    monkeypatch.setattr(safetensors.torch, "save", off)
    assert main(["export", "run", "--out", "out"]) == 1
    assert "are others when read again" in capsys.readouterr().err
    assert not any(Path("out").iterdir())


def test_files_of_an_earlier_export_are_removed_and_told(trained, monkeypatch, capsys):
    trained("dcgan")
    out = Path("out")
    out.mkdir()
    for name in ("generator.safetensors", "generator.pt2", "generator.onnx", "other.onnx"):
        (out / name).write_text("older")
    assert main(["export", "run", "--out", "out"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"{out}/generator.onnx: removed, it was of an earlier export" in said
    assert len(said) == 3
    assert {path.name for path in out.iterdir()} == {
        "generator.safetensors", "generator.pt2", "other.onnx"
    }  # fmt: skip
    assert all(path.stat().st_size > 100 for path in out.glob("generator.*"))
    monkeypatch.setattr(export, "TOLERANCE", -1)
    assert main(["export", "run", "--out", "out", "--weights", "raw"]) == 1
    assert f"{out}/generator.pt2: removed" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"generator.safetensors", "other.onnx"}


def test_an_earlier_file_stays_where_a_new_one_cannot_be_written(trained, monkeypatch):
    trained("dcgan")
    out = Path("out")
    out.mkdir()
    for name in ("generator.safetensors", "generator.pt2"):
        (out / name).write_text("older")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["export", "run", "--out", "out"]) != 0
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "generator.safetensors": "older", "generator.pt2": "older"
    }  # fmt: skip


def test_not_a_number_does_not_pass(trained):
    trained("dcgan")
    loaded = gan.load("run")
    with pytest.raises(export.ExportError):
        export.checked(loaded, lambda given: loaded.generator(*given.values()) * float("nan"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ["dcgan"],
        ["dcgan", "generator=resnet"],
        ["wnet"],
        ["wnet", "generator.self_ensemble=true"],
        ["wnet", "generator.paired=true"],
        ["pix2pix", "generator.noise=false", "data.style=style05"],
    ],
)
def test_onnx_draws_any_number_of_images(trained, given, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    trained(*given)
    assert main(["export", "run", "--out", "out", "--onnx"]) == 0
    assert "generator.onnx: differs by at most" in capsys.readouterr().out
    loaded = gan.load("run")
    given = export.inputs(loaded, 6, seed=9)
    session = onnxruntime.InferenceSession("out/generator.onnx")
    (image,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        expected = loaded.generator(*given.values())
    assert (torch.from_numpy(image) - expected).abs().max() < 1e-4
