"""A classifier trained once per training set and kept: features for losses."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

from gan import checkpoint, distributed
from gan.check import Checked
from gan.data.stream import Stream

Read = Callable[[np.ndarray], Tensor]

FOLDER = Path("data/classifiers")
FORMAT = 1  # rises when the training below changes, so that older classifiers are not reused


def classifier_for(
    checked: Checked, dataset: Any, stream: Stream, device: torch.device, say: Callable[[str], None]
) -> nn.Module | None:
    """The frozen classifier behind a recipe's feature loss, for recipes that look through one."""
    recipe, settings = checked.entries["recipe"]
    if "classifier" not in recipe.given or not recipe.build.needs_classifier(settings):
        return None
    rows, labels = dataset.labelled()
    classes = {name: int(label.max()) + 1 for name, label in labels.items()}
    return fitted(
        lambda: checked.create("classifier", classes=classes),
        stream.images,
        rows,
        labels,
        dataset.store.content_hash,
        FOLDER,
        device,
        say=say,
    )


def fitted(
    make: Callable[[], nn.Module],
    read: Read,
    rows: np.ndarray,
    labels: Mapping[str, np.ndarray],
    content: str,
    folder: Path,
    device: torch.device,
    epochs: int = 15,
    say: Callable[[str], None] = print,
) -> nn.Module:
    """A frozen classifier of these rows of a store, from `folder` or trained now and kept there.

    `read` maps rows to images [N, C, H, W], `content` is the store's content hash, `labels` [N] by field.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        classifier = make().to(device)
        key = _key(classifier, rows, labels, content, epochs)
        kept = checkpoint.newest(folder / key, say)
        if kept is None:
            say(f"training the classifier of the feature loss on {len(rows)} images, once")
            accuracy = _fit(classifier, read, rows, labels, device, epochs)
            shares = ", ".join(f"{name} {share:.1%}" for name, share in accuracy.items())
            say(f"the classifier names its training images: {shares}; kept in {folder / key}")
            if distributed.rank() == 0:
                state = {"accuracy": accuracy}
                checkpoint.save(
                    folder / key,
                    epochs,
                    run_id=key,
                    networks=classifier.state_dict(),
                    optimizers={},
                    state=state,
                    config="",
                )
        else:
            stored = checkpoint.load(kept, networks_only=True)
            checkpoint.restore(classifier.state_dict(), stored.networks, f"classifier {kept}")
    return classifier.eval().requires_grad_(False)


def _key(
    classifier: nn.Module,
    rows: np.ndarray,
    labels: Mapping[str, np.ndarray],
    content: str,
    epochs: int,
) -> str:
    """Changes with the images, their labels, the network and its training."""
    shapes = {name: list(value.shape) for name, value in classifier.state_dict().items()}
    facts = json.dumps([FORMAT, content, epochs, sorted(labels), shapes])
    digest = hashlib.sha256(facts.encode())
    for numbers in (rows, *(labels[name] for name in sorted(labels))):
        digest.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def _fit(
    classifier: nn.Module,
    read: Read,
    rows: np.ndarray,
    labels: Mapping[str, np.ndarray],
    device: torch.device,
    epochs: int,
    batch_size: int = 64,
    rate: float = 3e-3,
) -> dict[str, float]:
    """Train on shifted images with one cycle of the learning rate; the accuracy by field at the end."""
    images = read(rows)
    wanted = {name: torch.as_tensor(label, device=device) for name, label in labels.items()}
    rounds = max(1, len(rows) // batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * rounds)
    classifier.train()
    bar = trange(epochs, desc="classifier", unit="epoch", disable=None)
    for _ in bar:
        order = torch.randperm(len(rows), device=device)
        for chosen in order[: rounds * batch_size].split(batch_size):
            logits = classifier(shifted(images[chosen]))
            terms = [cross_entropy(logits[name], label[chosen]) for name, label in wanted.items()]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(terms).sum().backward()
            optimizer.step()
            cycle.step()
        if not bar.disable:
            bar.set_postfix_str(
                " ".join(
                    f"{name} {term.item():.3f}" for name, term in zip(wanted, terms, strict=True)
                )
            )
    return _accuracy(classifier, images, wanted)


def shifted(images: Tensor, most: int = 2) -> Tensor:
    """The batch moved by up to `most` pixels each way, the edge repeated."""
    padded = nn.functional.pad(images, (most,) * 4, mode="replicate")
    top, left = torch.randint(2 * most + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    return padded[..., top : top + height, left : left + width]


@torch.no_grad()
def _accuracy(
    classifier: nn.Module, images: Tensor, wanted: Mapping[str, Tensor]
) -> dict[str, float]:
    classifier.eval()
    parts = [classifier(part) for part in images.split(512)]
    return {
        name: (torch.cat([part[name] for part in parts]).argmax(1) == label).float().mean().item()
        for name, label in wanted.items()
    }
