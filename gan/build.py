"""From a configuration to a Trainer: the only place that knows every part."""

from collections.abc import Callable
from typing import Any

import torch
import yaml

from gan import distributed, features
from gan.config.check import Checked, check, readable
from gan.config.rehearsal import rehearse_classes
from gan.data.stream import Stream
from gan.metrics.evaluation import evaluation_for
from gan.networks.reference import reference_networks
from gan.recipe import Recipe
from gan.run import finetune, rundir
from gan.run.monitor import Monitor
from gan.run.signals import Stop
from gan.step import compiling, guard, parts, pieces
from gan.trainer import Trainer

Say = Callable[[str], None]


def build(config: dict[str, Any], say: Say = distributed.say, stop: Stop | None = None) -> Trainer:
    """A trainer ready to train, resumed from its newest checkpoint where there is one."""
    stop = Stop() if stop is None else stop
    with distributed.first():
        checked = check(config)
        for note in checked.notes:
            say(note)
        settings, device = checked.settings, distributed.device(checked.settings.device)
        resumed = rundir.previous(checked.run_dir, checked.resume, checked.values, say)
        known = reference_networks(settings.weights, device)
        dataset = checked.create("data")
    rundir.fix_lengths(checked)
    torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    reads = readable(checked, dataset)
    ranks = {"rank": distributed.rank(), "size": distributed.size()}
    batch_size, seed, asked = settings.batch_size, checked.seed, stop.__bool__
    stream = Stream(dataset, batch_size, seed, device, reads, asked=asked, **ranks)
    recipe = _recipe(checked, dataset, stream, device, say)
    if checked.init is not None and resumed is None:
        say(finetune.adopt(recipe, checked.init))
    asleep = parts.freeze(recipe, checked.freeze)
    if settings.compile:
        compiling.compile_calls(recipe, say)
    trainer = pieces.trainer_for(settings, device, say, checked.ours)(
        recipe,
        **{side: parts.player(checked, recipe, side, asleep) for side in guard.SIDES},
        stream=stream,
        averages=checked.create("average", generator=recipe.generator),
        settings=settings,
        monitor=Monitor(
            checked.run_dir,
            settings.steps,
            {name: stream.read(plan) for name, plan in dataset.shown(reads).items()},
            evaluation_for(recipe, dataset, stream, device, say, settings, known),
            settings.discriminator_warmup,
            settings.watch,
            settings.best,
            settings.profile,
        ),
        seed=checked.seed,
        config=yaml.safe_dump(checked.values, sort_keys=False, allow_unicode=True),
        run_id=rundir.run_id(checked.values),
        stop=stop,
    )
    rundir.begin(trainer, resumed, say)
    return trainer


def _recipe(
    checked: Checked, dataset: Any, stream: Stream, device: torch.device, say: Say
) -> Recipe:
    facts = {**dataset.facts, **checked.facts}
    rehearse_classes(checked, facts)
    distributed.seed(checked.seed, "start", 0, device)
    networks = {side: checked.create(side, **facts) for side in guard.SIDES}
    with distributed.first():
        classifier = features.classifier_for(checked, dataset, stream, device, say)
    given = {"reconstruction": checked.named("reconstruction"), "classifier": classifier}
    recipe = checked.recipe(facts, **networks, **given)
    distributed.synchronise(recipe, device)
    return recipe.to(device).to(memory_format=torch.channels_last)
