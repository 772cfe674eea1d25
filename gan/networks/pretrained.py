"""Frozen networks that losses look through: torchvision's classifiers, and those trained here.

Each is an eval-mode module without trainable parameters whose `features` are maps of an image.
"""

import hashlib
import importlib.util
import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan import checkpoint
from gan.checkpoint import Checkpoint
from gan.config.plain import parsed
from gan.config.signature import nearest
from gan.registry import create

_SHIFTING = ("googlenet", "inception_v3")  # torchvision's weights for them expect a further mapping


class TorchvisionClassifier(nn.Module):
    """Maps inside a classifier of torchvision, of images [B, 1 or 3, H, W] in [-1, 1]."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        name: str,
        layers: Sequence[str] = (),
        weights: str | None = None,
        download: bool = False,
    ) -> None:
        """`layers` are node names, as torchvision's `get_graph_node_names` lists them.

        Without any, the last convolution of each block of VGG. Maps come in their order, which
        need not be the network's. The weights come from the file `weights`, or from torchvision
        where it may `download` its own.

        Raises: ValueError for a name, layer or file that does not fit, or no weights at all.
        """
        from torchvision.models import get_model_weights  # slow to import, and rarely needed

        super().__init__()
        network = _torchvision(name, weights, download)
        for module in network.modules():
            if "inplace" in vars(module):
                vars(module)["inplace"] = False  # else ReLU overwrites the map before it
        self.nodes = _nodes(name, network.eval(), layers or _before_pooling(name, network))
        self.network = _cut(network, self.nodes)
        preset: Any = get_model_weights(name).DEFAULT.transforms()
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (preset.mean, preset.std))
        self.register_buffer("scale", 0.5 / deviation)
        self.register_buffer("shift", (0.5 - mean) / deviation)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "TorchvisionClassifier":
        """Stays in eval mode: training statistics would drift with what is looked at."""
        return super().train(False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps at the chosen layers, in their order; grey images are seen as colour images."""
        if image.shape[1] not in (1, 3):
            raise ValueError(f"torchvision's networks see 1 or 3 channels, not {image.shape[1]}")
        maps = self.network(image * self.scale + self.shift)  # one channel becomes three here
        return [maps[node] for node in self.nodes]


def stored(folder: Path, channels: int | None = None) -> nn.Module:
    """The frozen classifier in a folder that `gan classifier` wrote, for images of `channels`.

    Raises: ValueError where there is none, or where it was trained on other channels.
    """
    path = checkpoint.newest(folder)
    if path is None:
        raise ValueError(
            f"{folder} holds no classifier: `gan classifier STORE --out {folder}` trains one"
        )
    kept = checkpoint.load(path, networks_only=True)
    seen = _description(kept)["channels"]
    if channels not in (None, seen):
        raise ValueError(
            f"the classifier in {folder} sees images of {seen} channels, "
            f"but image.channels={channels}: train one on such images"
        )
    return rebuilt(kept)


def rebuilt(kept: Checkpoint) -> nn.Module:
    """The frozen classifier of a checkpoint."""
    with torch.random.fork_rng(devices=[]):  # what it starts from is overwritten at once
        classifier: nn.Module = create("classifier", **_description(kept))
    checkpoint.restore(classifier.state_dict(), kept.networks, f"classifier {kept.path}")
    return classifier.eval().requires_grad_(False)


def _description(kept: Checkpoint) -> Mapping[str, Any]:
    """The classifier's name and arguments."""
    description = parsed(kept.config)
    wanted = {"name", "channels", "classes"}
    if not isinstance(description, Mapping) or not wanted <= description.keys():
        raise ValueError(f"{kept.path} is no classifier: name a folder that `gan classifier` wrote")
    return description


def _torchvision(name: str, weights: str | None, download: bool) -> nn.Module:
    """The network with its trained weights; the random state stays as it was."""
    from torchvision import models

    known = models.list_models(module=models)
    if name != Path(name).name:
        raise ValueError(f"there is no folder {name}: name one that `gan classifier` wrote")
    if name not in known:
        raise ValueError(
            f"there is no network {name!r}: neither a folder that `gan classifier` wrote, nor a "
            f"classifier of torchvision; {nearest(name, known)}"
        )
    if (weights is not None) == download:
        raise ValueError(
            f"network={name} needs trained weights from one place: give weights=FILE with its "
            "state dict, or download=true to let torchvision fetch its own"
        )
    options = {"transform_input": True, "init_weights": False} if name in _SHIFTING else {}
    with torch.random.fork_rng(devices=[]):
        if weights is None:
            return models.get_model(name, weights="DEFAULT")
        network: nn.Module = models.get_model(name, weights=None, **options)
    state = read_weights(weights)
    _require_fit(network.state_dict(), state, f"weights={weights} do not fit network={name}")
    network.load_state_dict(state)
    return network


def read_weights(weights: str) -> Any:
    """What a file of weights holds; nothing in it is run.

    Raises: ValueError where it cannot be read so.
    """
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"weights={weights} cannot be read: {reason}") from error


def require_digest(name: str, weights: Path, known: Collection[str]) -> str:
    """The SHA-256 of a file, which must begin as one of the known ones does.

    Raises:
        ValueError: no such file, or another.
    """
    wanted = " or ".join(known)
    if not weights.is_file():
        raise ValueError(
            f"{name}={weights}: there is no such file; its SHA-256 should begin with {wanted}"
        )
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(tuple(known)):
        raise ValueError(
            f"{name}={weights}: its SHA-256 begins with {digest[:8]}, not {wanted}: with other "
            "weights the numbers would not be what their names say"
        )
    return digest


def installed(library: str, name: str) -> Path:
    """The folder of a library that a reference network needs; it is not imported for it.

    Raises: ValueError where it is missing.
    """
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        raise ValueError(f"{name} needs {library}: pip install 'gan[metrics]'")
    return Path(found.origin).parent


def _require_fit(here: Mapping[str, Tensor], there: Any, what: str) -> None:
    if not isinstance(there, Mapping):
        raise ValueError(f"{what}: the file holds no state dict but a {type(there).__name__}")
    differing = sorted(
        {name for name in here if getattr(there.get(name), "shape", None) != here[name].shape}
        | (there.keys() - here.keys())
    )
    if differing:
        raise ValueError(
            f"{what}: {len(differing)} tensors are missing, unknown or of another shape, such as "
            f"{', '.join(differing[:5])}; give the state dict of this very network"
        )


def _before_pooling(name: str, network: nn.Module) -> list[str]:
    """The convolution before each pooling of a plain sequence: conv1_2 to conv5_3 of VGG-16."""
    found: list[str] = []
    last = None
    for place, module in getattr(network, "features", nn.Sequential()).named_children():
        if isinstance(module, nn.Conv2d):
            last = f"features.{place}"
        elif isinstance(module, nn.MaxPool2d) and last:
            found.append(last)
            last = None
    if len(found) < 2:
        raise ValueError(f"layers must be given for network={name}: only VGG's are known")
    return found


def _nodes(name: str, network: nn.Module, layers: Sequence[str]) -> list[str]:
    """The node of each layer: its own, or the last one in a module of several."""
    from torchvision.models.feature_extraction import get_graph_node_names

    nodes = get_graph_node_names(network, suppress_diff_warning=True)[1]
    found = []
    for layer in layers:
        inside = [node for node in nodes if node == layer or node.startswith(f"{layer}.")]
        if not inside:
            raise ValueError(f"layers: network={name} has no {layer!r}; {nearest(layer, nodes)}")
        found.append(inside[-1])
    return found


def _cut(network: nn.Module, nodes: Sequence[str]) -> nn.Module:
    """The network up to the last of these nodes, returning the maps there by name."""
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(network, [*dict.fromkeys(nodes)], suppress_diff_warning=True)
