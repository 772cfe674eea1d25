"""A generator as files for use without this package: weights, a program, ONNX; each checked."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gan.recipes.synthesis import Synthesis
from gan.recipes.wnet import WNet
from gan.runs import Run

TOLERANCE = 1e-4  # largest difference of an exported image and the original
_TRACED, _TRIED = 2, (1, 3)  # images at once, and references: when traced, and in the checks

Called = Callable[[dict[str, Tensor]], Tensor]


class ExportError(RuntimeError):
    """An exported generator that does not draw what the original draws."""


def inputs(run: Run, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of a generator, by name and in order; as many references as images.

    Raises:
        ValueError: a recipe whose generator is called in a way that is not known here.
    """
    random = torch.Generator().manual_seed(seed)
    if issubclass(run.recipe, WNet):
        shape = run.config["image"]["channels"], run.size, run.size
        prototype = torch.rand(count, *shape, generator=random) * 2 - 1
        references = torch.rand(count, count, *shape, generator=random) * 2 - 1
        return {"prototype": prototype, "references": references}
    if not issubclass(run.recipe, Synthesis):
        raise ValueError(
            f"gan export knows generators of noise and W-Nets; {run.path} was trained with "
            f"recipe={run.config['recipe']['name']}: export gan.load(RUN).generator by itself"
        )
    noise = {"z": run.noise(count, seed)}
    label = torch.randint(run.classes, (count,), generator=random) if run.classes else None
    return noise if label is None else {**noise, "label": label}


def weights(run: Run, path: Path) -> None:
    """Parameters and buffers by the generator's own names as safetensors, and what they are of."""
    state = run.generator.state_dict()
    facts = {
        "recipe": str(run.config["recipe"]["name"]),
        "generator": str(run.config["generator"]["name"]),
        "weights": run.weights,
        "step": str(run.step),
        "classes": str(run.classes),
    }
    plain = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    path.write_bytes(safetensors.torch.save(plain, facts))


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
    path.write_bytes(file.getvalue())
    return difference


def onnx(run: Run, path: Path) -> float:
    """The same as ONNX, checked by onnxruntime.

    Raises:
        ExportError: it draws something else, and is not written.
        ValueError: the libraries are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx writes by it
    except ImportError as error:
        raise ValueError(f"--onnx needs {error.name}: pip install 'gan[export]'") from error
    with warnings.catch_warnings():  # two inputs' numbers of images have one name
        warnings.filterwarnings("ignore", "# The axis name")
        exported = torch.onnx.export(_traced(run), dynamo=True, verbose=False)
    assert exported is not None  # it is where no path is given
    content = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def called(values: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {n: t.numpy() for n, t in values.items()})[0])

    difference = checked(run, called)
    path.write_bytes(content)
    return difference


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

    Raises:
        ExportError: it is more than `TOLERANCE`, or no number.
    """
    worst = 0.0
    for count in _TRIED:
        given = inputs(run, count, seed=count)
        difference = (called(given) - run.generator(*given.values())).abs().max().item()
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported generator of {run.path} differs by {difference:.2g} from the "
                f"original, more than {TOLERANCE:g}"
            )
        worst = max(worst, difference)
    return worst
