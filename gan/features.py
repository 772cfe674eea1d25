"""Classifiers trained once per training set and kept: features for losses, judges of images."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import trange

from gan import checkpoint, system
from gan.checkpoint import Checkpoint
from gan.config.check import Checked
from gan.data.stream import Stream
from gan.networks.pretrained import rebuilt, stored
from gan.registry import create
from gan.robust.perturb import Pgd

FOLDER = Path("data/classifiers")
EPOCHS = 14
FORMAT = 4  # rises when the training below changes, so that older classifiers are not reused

Say = Callable[[str], None]


class Lesson(NamedTuple):
    """What a classifier learns: the labels of some rows of a store."""

    images: Callable[[np.ndarray], Tensor]  # rows [N] to images [N, C, H, W] on the device
    rows: np.ndarray
    labels: Mapping[str, np.ndarray]  # [N] by field
    content: str  # the store's content hash


class Training(NamedTuple):
    """How a classifier learns."""

    epochs: int = EPOCHS
    held_out: float = 0.0  # share of the rows that are only looked at in the end
    loss: str = "cross_entropy"  # a registered classification loss
    against: Mapping[str, Any] = {}  # the name and settings of a registered perturbation, or none


USUAL = Training()


class Fitted(NamedTuple):
    """A frozen classifier, the share it names rightly by part and field, and where it is kept."""

    network: nn.Module
    accuracy: dict[str, dict[str, float]]  # `training` and, where there are such rows, `held_out`
    path: Path


def classifier_for(
    checked: Checked, dataset: Any, stream: Stream, device: torch.device, say: Say
) -> nn.Module | None:
    """The frozen classifier behind a recipe's feature loss, for recipes that look through one."""
    recipe, settings = checked.entries["recipe"]
    if "classifier" not in recipe.given or not recipe.build.needs_classifier(settings):
        return None
    source = settings["feature_source"]
    if source != "classifier":
        if not Path(source).is_dir():
            raise ValueError(
                f"recipe.feature_source={source} is neither classifier nor discriminator nor a "
                "folder that `gan classifier` wrote"
            )
        return stored(Path(source), checked.values["image"]["channels"]).to(device)
    chosen, arguments = checked.entries["classifier"]
    rows, labels = dataset.labelled()
    lesson = Lesson(stream.images, rows, labels, dataset.store.content_hash)
    result = fitted({"name": chosen.name, **arguments}, lesson, device, say=say)
    say(f"the feature loss looks through {result.path}; {in_words(result.accuracy)}")
    return result.network


def fitted(
    settings: Mapping[str, Any],
    lesson: Lesson,
    device: torch.device,
    training: Training = USUAL,
    folder: Path | None = None,
    say: Say = print,
) -> Fitted:
    """A registered classifier with these settings that has learnt the lesson, now or earlier.

    It is kept in `folder`; by default, in one under FOLDER that only the same lesson leads to.
    Processes that want the same one train it once: the others wait.

    Raises: ValueError where the folder holds another classifier.
    """
    classes = {name: int(label.max()) + 1 for name, label in lesson.labels.items()}
    description = {**settings, "classes": classes}
    key = _key(description, lesson, training)
    folder = folder or FOLDER / key
    kept = _kept(folder, key, lambda _: None)
    if kept is None:
        with alone(folder, say):
            kept = _kept(folder, key, say)  # another process may have been here first
            if kept is None:
                path = _train_and_keep(description, lesson, training, device, folder, key, say)
                kept = checkpoint.load(path, networks_only=True)
    return Fitted(rebuilt(kept).to(device), kept.state["accuracy"], folder)


def _key(description: Mapping[str, Any], lesson: Lesson, training: Training) -> str:
    """Changes with the images, their labels, the network and its training."""
    labels = [lesson.labels[name] for name in sorted(lesson.labels)]
    return key_of([FORMAT, lesson.content, description, training], lesson.rows, *labels)


def key_of(facts: Any, *numbers: np.ndarray) -> str:
    """Sixteen digits that change with any of the facts, which are JSON, and of the integers."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in numbers:
        digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _kept(folder: Path, key: str, say: Say) -> Checkpoint | None:
    """The classifier of this key, where it is in the folder and whole."""
    path = checkpoint.newest(folder, say)
    kept = checkpoint.load(path, networks_only=True) if path else None
    if kept and kept.manifest["run_id"] != key:
        raise ValueError(
            f"{folder} holds another classifier (of other images, labels or settings, or of an "
            "earlier version): choose another folder, or remove that one"
        )
    return kept


@contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """One process at a time trains for a folder; what a dead one held is free again."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "ab") as lock:
        try:
            system.lock(lock.fileno())
        except BlockingIOError:
            say(f"waiting for the process that trains the classifier in {folder}")
            system.lock(lock.fileno(), wait=True)
        yield


def _train_and_keep(
    description: Mapping[str, Any],
    lesson: Lesson,
    training: Training,
    device: torch.device,
    folder: Path,
    key: str,
    say: Say,
) -> Path:
    """The path of the new checkpoint."""
    seen, unseen = _split(len(lesson.rows), training.held_out)
    say(f"training a classifier of {', '.join(lesson.labels)} on {len(seen)} images, once")
    with _seeded(device):
        classifier = create("classifier", **description).to(device)
        _fit(classifier, lesson, seen, training, device, say)
    accuracy = {"training": _accuracy(classifier, lesson, seen)}
    if len(unseen):
        accuracy["held_out"] = _accuracy(classifier, lesson, unseen)
    return checkpoint.save(
        folder,
        training.epochs,
        run_id=key,
        networks=classifier.state_dict(),
        optimizers={},
        state={"accuracy": accuracy},
        config=yaml.safe_dump(dict(description), allow_unicode=True),
    )


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """The same random numbers every time; those of everybody else go on as if nothing were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def in_words(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Accuracies by part and field as a line of text."""
    return "; ".join(
        f"{part.replace('_', '-')} images named rightly: "
        + ", ".join(f"{field} {share:.1%}" for field, share in shares.items())
        for part, shares in accuracy.items()
    )


def _split(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Places of the images to learn and of those held out, always the same, each sorted."""
    order = np.random.Generator(np.random.Philox(key=[0, count])).permutation(count)
    held_out = math.ceil(share * count)
    if count - held_out < 2:
        raise ValueError(
            f"a classifier needs at least 2 images to learn from, not {count - held_out} "
            f"of {count} with held_out={share:g}"
        )
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@torch.enable_grad()
def _fit(
    classifier: nn.Module,
    lesson: Lesson,
    places: np.ndarray,
    training: Training,
    device: torch.device,
    say: Say,
    batch_size: int = 64,
    rate: float = 3e-3,
) -> None:
    """Train on shifted images of these places of the lesson, in one cycle of the learning rate.

    In the end batch norm's statistics are taken anew, over such images once (Wu and Johnson 2021,
    arXiv:2105.07576, section 3): after few updates the running ones still hold where they started.
    """
    wanted = {name: torch.tensor(label, device=device) for name, label in lesson.labels.items()}
    losses = {name: create("classification", training.loss) for name in wanted}
    harder = create("perturbation", **training.against) if training.against else None
    rounds = max(1, len(places) // batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=training.epochs * rounds
    )
    learnt = torch.as_tensor(places)

    def looked_at(chosen: Tensor, victim: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        images = shifted(lesson.images(lesson.rows[chosen.numpy()]))
        labels = {name: label[chosen] for name, label in wanted.items()}
        if harder is not None:
            images = attacked(victim, harder, losses, images, labels)
        return images, labels

    classifier.train()
    bar = trange(training.epochs, desc="classifier", unit="epoch", disable=None)
    for epoch in bar:
        order = learnt[torch.randperm(len(learnt))]
        for chosen in torch.split(order[: rounds * batch_size], batch_size):
            images, labels = looked_at(chosen, classifier)
            logits = classifier(images)
            terms = {name: losses[name](logits[name], labels[name]) for name in labels}
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.stack([*terms.values()]).sum())
            optimizer.step()
            cycle.step()
        shown = ", ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
        bar.set_postfix_str(shown)
        if bar.disable:  # no terminal: plain lines
            say(f"classifier epoch {epoch + 1}/{training.epochs}  {shown}")
    learnt_from = partial(looked_at, victim=copy.deepcopy(classifier))
    update_bn(map(learnt_from, order.tensor_split(math.ceil(len(order) / batch_size))), classifier)


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """Each image [B, C, H, W] moved by up to `most` pixels each way, the edge repeated."""
    height, width = images.shape[-2:]
    padded = nn.functional.pad(images, (most,) * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2m+1, 2m+1, H, W], a view
    top, left = torch.randint(2 * most + 1, (2, len(images)), device=images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def attacked(
    classifier: nn.Module,
    perturbation: Pgd,
    losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    images: Tensor,
    labels: Mapping[str, Tensor],
) -> Tensor:
    """Images that raise the sum of all fields' losses; the classifier looks on in eval mode.

    So its running statistics stay, and each image's direction depends on itself alone.
    """

    def loss_of(images: Tensor) -> Tensor:
        logits = classifier(images)
        return torch.stack([losses[name](logits[name], labels[name]) for name in losses]).sum()

    mode = classifier.training
    classifier.eval()
    try:
        return perturbation(loss_of, images)
    finally:
        classifier.train(mode)


def accuracy_under(
    against: Mapping[str, Any],
    classifier: nn.Module,
    lesson: Lesson,
    held_out: float,
    through: nn.Module | None = None,
) -> dict[str, float]:
    """The share of held-out images that are named rightly after a perturbation, by field.

    It is made to hurt the classifier, or another one that it comes `through`.
    """
    _, unseen = _split(len(lesson.rows), held_out)
    losses = dict.fromkeys(lesson.labels, nn.functional.cross_entropy)
    change = partial(attacked, through or classifier, create("perturbation", **against), losses)
    with _seeded(next(classifier.parameters()).device):
        return _accuracy(classifier, lesson, unseen, change)


@torch.no_grad()
def _accuracy(
    classifier: nn.Module,
    lesson: Lesson,
    places: np.ndarray,
    change: Callable[[Tensor, Mapping[str, Tensor]], Tensor] = lambda images, labels: images,
) -> dict[str, float]:
    """The share of these places that the classifier names rightly, by field, after a change."""
    classifier.eval()
    right = dict.fromkeys(lesson.labels, 0)
    for part in np.split(places, range(512, len(places), 512)):
        images = lesson.images(lesson.rows[part])
        labels = {
            name: torch.tensor(label[part], device=images.device)
            for name, label in lesson.labels.items()
        }
        logits = classifier(change(images, labels))
        for name, label in labels.items():
            right[name] += int((logits[name].argmax(1) == label).sum())
    return {name: count / len(places) for name, count in right.items()}
