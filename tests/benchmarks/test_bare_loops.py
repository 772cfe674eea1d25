"""The loops by hand do the same tensor work: they end with the very same weights."""

import pytest
import torch

from gan import distributed
from gan.bench import by_hand, games

SLOW = pytest.mark.slow
MODELS = {
    **games.MODELS,
    "paired_wnet": [*games.MODELS["tiny_wnet"], "generator.paired=true"],
}


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("tiny_wnet", "fp32"),
        ("paired_wnet", "fp32"),
        *(
            pytest.param(model, precision, marks=SLOW)
            for model, precision in (
                ("tiny", "fp32"),
                ("tiny_sngan", "fp32"),
                ("tiny", "bf16"),
                ("tiny_sngan", "bf16"),
                ("tiny_wnet", "bf16"),
            )
        ),
    ],
)
def test_a_bare_loop_ends_with_the_trainers_weights(composed, model, precision):
    chosen = f"trainer.precision={precision}"
    values = composed(*MODELS[model], *games.COMMON, chosen)
    ours, other = games.trainer(values), games.trainer(values)
    step = by_hand.bare(other)
    for update in range(3):
        ours.play()
        distributed.seed(ours.seed, "discriminator", update, ours.device)
        step()
    for part in ("recipe", "average"):
        mine, theirs = (
            game.recipe if part == "recipe" else game.averages["ema"].generator
            for game in (ours, other)
        )
        for name, tensor in mine.state_dict().items():
            torch.testing.assert_close(
                tensor, theirs.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name
            )
