"""A generator as files for use without this package: weights, a program, ONNX; each checked."""

import io
import warnings
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gan import disk
from gan.networks.unet import Dropout
from gan.noise import FromNoise
from gan.recipe import Recipe
from gan.recipes.cyclegan import CycleGAN
from gan.recipes.pix2pix import Pix2Pix
from gan.recipes.wnet import WNet
from gan.references import is_paired
from gan.runs import Run

TOLERANCE = 1e-4  # largest difference of an exported image and the original
GIVEN: dict[type[Recipe], tuple[str, ...]] = {
    WNet: ("prototype", "references"),
    Pix2Pix: ("input",),
    CycleGAN: ("a", "b"),
}
"""Images that generators are given, by the names of their inputs."""
FORMATS = ("safetensors", "pt2", "onnx")
_TRACED, _TRIED = 2, (1, 3)  # images at once, and references: when traced, and in the checks

Called = Callable[[dict[str, Tensor]], Tensor | tuple[Tensor, ...]]


class ExportError(RuntimeError):
    """An exported generator that does not draw what the original draws."""


def inputs(run: Run, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a generator, by name and in order; as many references as images,
    of a paired generator beside their characters.

    Raises:
        ValueError: a recipe whose generator is called in a way that is not known here.
    """
    random = torch.Generator().manual_seed(seed)
    given = next((names for kind, names in GIVEN.items() if issubclass(run.recipe, kind)), ())
    if given:
        image = count, run.config["image"]["channels"], run.size, run.size
        several = count, count, (1 + is_paired(run.generator)) * image[1], *image[2:]
        shapes = {name: several if name == "references" else image for name in given}
        return {n: torch.rand(shape, generator=random) * 2 - 1 for n, shape in shapes.items()}
    if not issubclass(run.recipe, FromNoise):
        raise ValueError(
            f"gan export knows generators of noise, W-Nets and translators; {run.path} was trained "
            f"with recipe={run.config['recipe']['name']}: export gan.load(RUN).generator by itself"
        )
    if run.recipe.draw is not FromNoise.draw:
        raise ValueError(
            f"gan export writes generators, but recipe={run.config['recipe']['name']} has a `draw` "
            "that makes images of what its own gives: export gan.load(RUN).generator by itself"
        )
    noise = {"z": run.recipe.noise(run.noise(count, seed))}
    label = torch.randint(run.classes, (count,), generator=random) if run.classes else None
    return noise if label is None else {**noise, "label": label}


def weights(run: Run, path: Path) -> None:
    """Parameters and buffers by the generator's own names as safetensors, and what they are of.

    Raises:
        ExportError: they are others when read again, and are not written.
    """
    state = run.generator.state_dict()
    facts = {
        "recipe": str(run.config["recipe"]["name"]),
        "generator": str(run.config["generator"]["name"]),
        "weights": run.weights,
        "step": str(run.step),
        "classes": str(run.classes),
    }
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    content = safetensors.torch.save(plain, facts)
    try:
        torch.testing.assert_close(
            safetensors.torch.load(content), plain, rtol=0, atol=0, equal_nan=True
        )
    except AssertionError as error:
        raise ExportError(f"the weights of {run.path} are others when read again") from error
    disk.put(path, content)


def program(run: Run, path: Path) -> float:
    """The generator as a `torch.export` program of any number of images; its largest difference.

    It is checked in memory, as written; nothing here ever reads such a file.

    Raises:
        ExportError: it draws something else, and is not written.
    """
    exported = _traced(run)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    called = torch.export.load(file).module()
    difference = checked(run, lambda values: called(*values.values()))
    disk.put(path, file.getvalue())
    return difference


def onnx(run: Run, path: Path) -> float:
    """The same as ONNX, checked by onnxruntime.

    Raises:
        ExportError: it draws something else, and is not written.
        ValueError: its dropout stays on, or the libraries are not installed.
    """
    if any(isinstance(part, Dropout) and part.always for part in run.generator.modules()):
        raise ValueError(
            f"--onnx takes no dropout that stays on, as that of {run.path} does: onnxruntime draws "
            "other numbers than torch, and nothing could be compared; train with "
            "generator.noise=false"
        )
    try:
        import onnxruntime

        import_module("onnxscript")  # torch.onnx writes by it
    except ImportError as error:
        raise ValueError(f"--onnx needs {error.name}: pip install 'gan[export]'") from error
    with warnings.catch_warnings():  # two inputs' numbers of images have one name
        warnings.filterwarnings("ignore", "# The axis name")
        exported = torch.onnx.export(_traced(run), dynamo=True, verbose=False)
    assert exported is not None  # it is where no path is given
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def called(values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        drawn = session.run(None, {name: tensor.numpy() for name, tensor in values.items()})
        return tuple(map(torch.from_numpy, drawn))

    difference = checked(run, called)
    disk.put(path, content)
    return difference


def remove_older(folder: Path, written: Collection[Path]) -> list[Path]:
    """Removes what an earlier export left beside the files written now; the paths."""
    every = [folder / f"generator.{suffix}" for suffix in FORMATS]
    older = [path for path in every if written and path not in written and path.exists()]
    for path in older:
        path.unlink()
    return older


def _traced(run: Run) -> ExportedProgram:
    given = inputs(run, _TRACED)
    shapes = _growing(given)
    return torch.export.export(run.generator, tuple(given.values()), dynamic_shapes=shapes)


def _growing(given: dict[str, Tensor]) -> tuple[dict[int, Dim], ...]:
    """Every input's number of images is free, and the same; that of references, too."""
    images = Dim("images")
    return tuple(
        {0: images, 1: Dim("references")} if name == "references" else {0: images} for name in given
    )


@torch.no_grad()
def checked(run: Run, called: Called) -> float:
    """The largest difference of what is called and the generator, on random inputs.

    Dropout that stays on, as in a U-Net, is the same in both where it is torch's own.

    Raises:
        ExportError: it is more than `TOLERANCE`, or no number.
    """
    worst = 0.0
    for count in _TRIED:
        given = inputs(run, count, seed=count)
        made = (_drawn(one, given) for one in (called, lambda g: run.generator(*g.values())))
        apart = [(one - other).abs().max() for one, other in zip(*made, strict=True)]
        difference = torch.stack(apart).max().item()  # no number where one of them is none
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported generator of {run.path} differs by {difference:.2g} from the "
                f"original, more than {TOLERANCE:g}"
            )
        worst = max(worst, difference)
    return worst


def _drawn(called: Called, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """One image or several of the same noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = called(given)
    return (drawn,) if isinstance(drawn, Tensor) else tuple(drawn)
