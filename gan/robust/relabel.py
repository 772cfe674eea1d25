"""Joint optimisation of a network and the labels it learns, some of which are wrong.

Tanaka et al. 2018, arXiv:1803.11364. A network that learns at a high rate finds what the images of
a class have in common long before it knows single images by heart. So its predictions are better
labels than the given ones, and learning these makes better predictions:

    L(network, labels) = L_c + alpha L_p + beta L_e

is minimised in turn: by SGD over the network, and in closed form over the labels, which become the
network's predictions. These are averaged over the last epochs and are those made while training, of
shifted images, so that no epoch needs a second pass. L_p keeps all images from becoming one class,
L_e keeps the soft labels from staying undecided.

What is not the paper's: the rate is constant only while the given labels are learnt, then it falls
to zero: by then there is little left to learn by heart. Where classes look alike, a given label
tells more than the network can see: with `evidence`, labels are predictions weighed with it, and
with `groups` no two images of a group share one.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm import tqdm

from gan import checkpoint, distributed
from gan.features import Lesson, key_of, shifted
from gan.registry import Count, NonNegative, Positive, Whole, create
from gan.robust.belief import Belief
from gan.run import optimizer_state

FORMAT = 1  # rises when what follows computes something else: what was begun is begun anew


class Settings(NamedTuple):
    """How labels are corrected; lengths are in epochs."""

    epochs: Count = 60
    start: Count = 20  # the given labels are learnt in these first epochs
    window: Count = 10  # predictions are averaged over the last so many
    alpha: NonNegative = 1.2  # alpha and beta as the paper has them for CIFAR-10
    beta: NonNegative = 0.8
    lr: Positive = 0.2
    hard: bool = False  # labels are the likeliest class, not a distribution
    evidence: bool = False  # the given label counts beside the prediction
    shift: Whole = 1  # pixels by which images are moved at most
    width: Count = 16
    batch_size: Count = 64
    seed: Whole = 0


# ---- losses -------------------------------------------------------------------------------------


def label_loss(logits: Tensor, label: Tensor) -> Tensor:
    """L_c = E_i[sum_j y_ij log(y_ij / s_ij)]: from labels [B, K], distributions, to predictions."""
    return (torch.xlogy(label, label) - label * logits.log_softmax(1)).sum(1).mean()


def prior_loss(logits: Tensor, prior: Tensor) -> Tensor:
    """L_p = sum_j p_j log(p_j / E_i[s_ij]): from the prior [K] to the batch's mean prediction."""
    mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))  # log E_i[s_ij], [K]
    return (torch.xlogy(prior, prior) - prior * mean).sum()


def entropy_loss(logits: Tensor) -> Tensor:
    """L_e = E_i[-sum_j s_ij log s_ij]."""
    logarithm = logits.log_softmax(1)
    return -(logarithm.exp() * logarithm).sum(1).mean()


# ---- training -----------------------------------------------------------------------------------


def correct(
    lesson: Lesson,
    classes: int,
    settings: Settings,
    device: torch.device,
    folder: Path,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The labels that a lesson of one field ends with: distributions, float32 [N, classes].

    After each epoch a checkpoint in `folder` lets the same call go on from there. The prior of L_p
    is the frequency of the classes among the given labels. Images of one of the `groups` [N], which
    are numbers from 0 on, are known to be of different classes.

    Raises: ValueError where the loss is no number any more, or the folder is of another lesson.
    """
    rates = falling(settings.lr, settings.start, settings.epochs)
    return _trained(lesson, classes, settings, rates, device, folder, groups)


def plain(
    lesson: Lesson,
    classes: int,
    settings: Settings,
    device: torch.device,
    folder: Path,
) -> np.ndarray:
    """What ordinary training makes of the same lesson: its last predictions, float32 [N, classes].

    Cross entropy with the given labels over as many epochs, at a rate that falls along a cosine,
    of images as they are: what learns labels by heart.
    """
    ordinary = settings._replace(alpha=0.0, beta=0.0, shift=0, evidence=False, window=1)
    never = ordinary._replace(start=settings.epochs + 1)
    rates = falling(settings.lr, 0, settings.epochs)
    return _trained(lesson, classes, never, rates, device, folder)


def falling(lr: float, start: int, epochs: int) -> list[float]:
    """A learning rate for each epoch: constant until the start, then along a cosine to zero."""
    turns = [max(0, epoch - start) / max(1, epochs - start) for epoch in range(epochs)]
    return [lr * (1 + math.cos(math.pi * turn)) / 2 for turn in turns]


def _trained(
    lesson: Lesson,
    classes: int,
    settings: Settings,
    rates: Sequence[float],
    device: torch.device,
    folder: Path,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The average predictions after one epoch at each of the learning rates."""
    ((field, labels),) = lesson.labels.items()
    given = torch.tensor(labels, device=device)
    prior = torch.bincount(given, minlength=classes) / len(given)
    channels = lesson.images(lesson.rows[:1]).shape[1]
    network = {"channels": channels, "width": settings.width, "classes": {field: classes}}
    distributed.seed(settings.seed, "relabel", 0, device)
    classifier = create("classifier", "small", **network).to(device)
    classifier.to(memory_format=torch.channels_last)
    belief = Belief(given, classes, settings.window, settings.evidence, groups)
    optimizer = torch.optim.SGD(classifier.parameters(), settings.lr, 0.9, weight_decay=1e-4)
    key = _key(lesson, [classes, settings, rates], groups)
    states = _States(folder, key, classifier, belief, optimizer)
    first = states.restore()
    bar = tqdm(desc=folder.name, initial=first, total=len(rates), unit="epoch", disable=None)
    for epoch in range(first, len(rates)):
        distributed.seed(settings.seed, "relabel", epoch + 1, device)
        for group in optimizer.param_groups:
            group["lr"] = rates[epoch]
        loss = _epoch(classifier, belief, optimizer, lesson, prior, settings, epoch)
        soft = belief.held(epoch)
        if epoch + 1 >= settings.start:
            belief.label.copy_(one_hot(soft.argmax(1), classes) if settings.hard else soft)
        states.save(epoch + 1)
        moved = (soft.argmax(1) != given).float().mean().item()
        shown = f"loss {loss:.3f}, other than given {moved:.1%}"
        bar.set_postfix_str(shown, refresh=False)
        bar.update()
        if bar.disable:  # no terminal: plain lines
            print(f"{folder.name} epoch {epoch + 1}/{len(rates)}  {shown}")
    bar.close()
    return belief.held(len(rates) - 1).cpu().numpy()


def _epoch(
    classifier: nn.Module,
    belief: Belief,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    prior: Tensor,
    settings: Settings,
    epoch: int,
) -> float:
    """The mean loss of an epoch over shifted images, all of which are predicted once."""
    count = len(lesson.rows)
    total = torch.zeros((), device=prior.device)
    classifier.train()
    for chosen in torch.randperm(count).tensor_split(max(1, count // settings.batch_size)):
        images = shifted(lesson.images(lesson.rows[chosen.numpy()]), settings.shift)
        (logits,) = classifier(images).values()
        loss = (
            label_loss(logits, belief.label[chosen])
            + settings.alpha * prior_loss(logits, prior)
            + settings.beta * entropy_loss(logits)
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        belief.record(epoch, chosen, logits)
        total = total + loss.detach() * (len(chosen) / count)
    mean = total.item()
    if not math.isfinite(mean):
        raise ValueError(
            f"the loss is {mean} in epoch {epoch + 1}: lower --lr, which is {settings.lr:g}"
        )
    return mean


class _States:
    """The checkpoints of one training, all of whose tensors are moved in place."""

    def __init__(
        self,
        folder: Path,
        key: str,
        classifier: nn.Module,
        belief: Belief,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.folder, self.key, self.optimizer = folder, key, optimizer
        self.tensors = nn.ModuleDict({"classifier": classifier, "belief": belief}).state_dict()

    def restore(self) -> int:
        """The number of epochs that are done, the state after them restored."""
        path = checkpoint.newest(self.folder)
        if path is None:
            return 0
        kept = checkpoint.load(path)
        if kept.manifest["run_id"] != self.key:
            raise ValueError(
                f"{self.folder} was left by a relabelling of other images, labels or settings: "
                "remove it, or finish that one with its settings"
            )
        checkpoint.restore(self.tensors, kept.networks, "the relabelling")
        optimizer_state.unflatten(self.optimizer, kept.optimizers, kept.state["groups"])
        print(f"goes on after epoch {kept.step}, from {path}")
        return kept.step

    def save(self, epochs: int) -> None:
        """Keep the state after so many epochs, and the one before."""
        tensors, groups = optimizer_state.flatten(self.optimizer)
        checkpoint.save(
            self.folder,
            epochs,
            run_id=self.key,
            networks=self.tensors,
            optimizers=tensors,
            state={"groups": groups},
            config="",
        )
        checkpoint.rotate(self.folder, self.key)


def _key(lesson: Lesson, settings: Sequence[Any], groups: np.ndarray | None) -> str:
    """Changes with the images, their labels and groups, and the settings."""
    numbers = *lesson.labels.values(), *([] if groups is None else [groups])
    return key_of([FORMAT, lesson.content, settings], lesson.rows, *numbers)
