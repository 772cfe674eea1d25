"""What `average=` can choose: the averages of the generator to keep; the last is the best."""

from torch import nn

from gan.average import Average, Ema, Uniform
from gan.registry import Count, Positive, register

Averages = dict[str, Average]


@register("average", "ema", given=("generator",))
def ema(
    generator: nn.Module, halflife: Positive = 10_000.0, rampup: Positive | None = 0.05
) -> Averages:
    """Exponential, with a half-life in images."""
    return {"ema": Ema(generator, halflife, rampup)}


@register("average", "uniform", given=("generator",))
def uniform(generator: nn.Module, start: Count = 1) -> Averages:
    """The mean of the parameters after every update from `start` on."""
    return {"uniform": Uniform(generator, start)}


@register("average", "both", given=("generator",))
def both(
    generator: nn.Module,
    halflife: Positive = 10_000.0,
    rampup: Positive | None = 0.05,
    start: Count = 1,
) -> Averages:
    """Uniform and exponential side by side."""
    return {**uniform(generator, start), **ema(generator, halflife, rampup)}


@register("average", "none", given=("generator",))
def none(generator: nn.Module) -> Averages:
    """The raw generator alone."""
    return {}
