"""Well-known autograd errors, provoked in plugins: the explanation, the file and the line."""

import linecache
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from gan import explain
from gan.build import build
from gan.config.settings import Settings
from gan.explain import ExplainedError, explained, require_logits, strict_gradients
from gan.player import Player
from gan.registry import ConfigError
from gan.trainer import Trainer

TOY = """\
import copy
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from gan.losses.penalties import R1
from gan.recipe import Recipe, penalise


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, outputs)

    def forward(self, x):
        return self.last(self.first(x).tanh())


class Toy(Recipe):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = Net(2), Net(1)

    def generate(self, batch):
        return {"image": self.generator(batch["real"])}

    def discriminator_losses(self, batch, fakes, update):
        return {
            "real": -self.discriminator(batch["real"]).mean(),
            "fake": self.discriminator(fakes["image"]).mean(),
        }

    def generator_losses(self, batch, fakes, step):
        return {"adversarial": -self.discriminator(fakes["image"]).mean()}

    def samples(self, generator, batch):
        return {"generated": generator(torch.zeros(1, 2))}


class Guilty(Toy):
"""

PENALTY = """\
    def discriminator_losses(self, batch, fakes, update):
        losses = super().discriminator_losses(batch, fakes, update)
        image = batch["real"].detach().requires_grad_()
        return {**losses, "penalty": self.penalty(image)}

    def judge(self, image):
        return self.discriminator(image)
"""

NETWORK = """\
    def __init__(self):
        super().__init__()
        self.%s = Bad()


class Bad(Net):
    def __init__(self):
        super().__init__(2)
        self.part = nn.Sequential(nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(4, 2))

"""

# claim: (words of the explanation, words of torch, what the recipe does; HERE marks the line)
CASES = {
    "fake kept": (
        "has freed it",
        "second time",
        """\
    def generate(self, batch):
        self.kept = super().generate(batch)
        return self.kept

    def discriminator_losses(self, batch, fakes, update):
        return {"fake": self.discriminator(self.kept["image"]).mean()}  # HERE
""",
    ),
    "running mean with its graph": (
        "has freed it",
        "second time",
        """\
    mean = 0.0

    def discriminator_losses(self, batch, fakes, update):
        logits = self.discriminator(fakes["image"])
        self.mean = 0.9 * self.mean + 0.1 * logits.mean()  # HERE
        return {"fake": (logits - self.mean).square().mean()}
""",
    ),
    "logits of the other's turn": (
        "has freed it",
        "second time",
        """\
    def discriminator_losses(self, batch, fakes, update):
        self.logits = self.discriminator(fakes["image"])
        return {"fake": self.logits.mean()}

    def generator_losses(self, batch, fakes, step):
        losses = super().generator_losses(batch, fakes, step)
        return {**losses, "gap": self.logits.square().mean()}  # HERE
""",
    ),
    "recipe differentiates its own loss": (
        "has freed it",
        "second time",
        """\
    def discriminator_losses(self, batch, fakes, update):
        loss = self.discriminator(fakes["image"]).square().mean()
        loss.backward()  # HERE
        return {"fake": loss}
""",
    ),
    "add in place": (
        "was overwritten",
        "inplace",
        NETWORK % "generator"
        + """\
    def forward(self, x):
        out = self.first(x).tanh()  # NEEDED
        out += 1  # HERE
        return self.last(out)
""",
    ),
    "write into a slice": (
        "was overwritten",
        "inplace",
        NETWORK % "discriminator"
        + """\
    def forward(self, x):
        out = self.first(x).exp()  # NEEDED
        out[:, 0] = 1  # HERE
        return self.last(out)
""",
    ),
    "activation in place": (
        "was overwritten",
        "inplace",
        NETWORK % "generator"
        + """\
    def forward(self, x):
        return self.part(self.first(x))  # HERE NEEDED
""",
    ),
    "write below a penalty": (
        "was overwritten",
        "inplace",
        """\
    def discriminator_losses(self, batch, fakes, update):
        real, fake = batch["real"], fakes["image"]
        return penalise({"r1": R1()}, self.judge, real, fake, update)

    def judge(self, image):
        hidden = self.discriminator.first(image).sigmoid()  # NEEDED
        hidden.mul_(2)  # HERE
        return self.discriminator.last(hidden)
""",
    ),
    "recipe steps by itself": (
        "a weight changed",
        "inplace",
        """\
    def discriminator_losses(self, batch, fakes, update):
        optimizer = torch.optim.SGD(self.discriminator.parameters(), lr=0.1)
        loss = self.discriminator(fakes["image"]).mean()
        for parameter in self.discriminator.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()  # HERE
        return {"fake": loss}
""",
    ),
    "logits from before the step": (
        "a weight changed",
        "inplace",
        """\
    def discriminator_losses(self, batch, fakes, update):
        self.image = fakes["image"].requires_grad_()
        self.logits = self.discriminator(self.image)
        return super().discriminator_losses(batch, fakes, update)

    def generator_losses(self, batch, fakes, step):
        return {"gap": (self.logits * fakes["image"]).mean()}  # HERE
""",
    ),
    "result frozen": (
        "cannot be frozen",
        "requires_grad flags",
        """\
    def generator_losses(self, batch, fakes, step):
        fakes["image"].requires_grad = False  # HERE
        return super().generator_losses(batch, fakes, step)
""",
    ),
    "gradient of an image read": (
        "only weights keep",
        "not a leaf",
        """\
    def generator_losses(self, batch, fakes, step):
        if fakes["image"].grad is None:  # HERE
            return super().generator_losses(batch, fakes, step)
""",
    ),
    "no gradient at all": (
        "nothing that can be trained",
        "does not have a grad_fn",
        PENALTY
        + """
    def penalty(self, image):
        with torch.no_grad():
            logits = self.judge(image)
        return torch.autograd.grad(logits.sum(), image)[0].mean()  # HERE
""",
    ),
    "image not marked": (
        "does not depend on",
        "does not require grad",
        PENALTY
        + """
    def penalty(self, image):
        logits = self.judge(image)
        return torch.autograd.grad(logits.sum(), image.detach())[0].mean()  # HERE
""",
    ),
    "another image judged": (
        "does not depend on",
        "not have been used",
        PENALTY
        + """
    def penalty(self, image):
        logits = self.judge(image.clone().detach())
        return torch.autograd.grad(logits.sum(), image)[0].mean()  # HERE
""",
    ),
    "another image judged below a penalty of the framework": (
        "does not depend on",
        "not have been used",
        """\
    def discriminator_losses(self, batch, fakes, update):
        real, fake = batch["real"], fakes["image"]
        return penalise({"r1": R1()}, self.judge, real, fake, update)  # HERE

    def judge(self, image):
        return self.discriminator(torch.ones(3, 2))
""",
    ),
    "compiled discriminator": (
        "differentiates twice",
        "double backward",
        PENALTY
        + """
    def penalty(self, image):
        logits = torch.compile(self.discriminator, backend="aot_eager")(image)
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)  # HERE
        return gradient.square().mean()
""",
    ),
    "operation that is differentiable once": (
        "differentiates twice",
        "once_differentiable",
        PENALTY
        + """
    def penalty(self, image):
        logits = self.judge(Square.apply(image))
        (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)  # HERE
        return gradient.square().mean()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]
""",
    ),
    "sample of inference mode": (
        "inference mode",
        "Inference tensors",
        """\
    def discriminator_losses(self, batch, fakes, update):
        with torch.inference_mode():
            image = self.generator(batch["real"])
        features = self.discriminator.first(image)  # HERE
        return {"fake": self.discriminator.last(features).mean()}
""",
    ),
    "weight edited": (
        "a weight was edited",
        "leaf Variable",
        """\
    def discriminator_losses(self, batch, fakes, update):
        for parameter in self.discriminator.parameters():
            parameter.clamp_(-1, 1)  # HERE
        return super().discriminator_losses(batch, fakes, update)
""",
    ),
    "hooked spectral norm copied": (
        "cannot be copied",
        "deepcopy",
        """\
    def discriminator_losses(self, batch, fakes, update):
        layer = nn.utils.spectral_norm(nn.Linear(2, 1))
        loss = layer(fakes["image"]).mean()
        twin = copy.deepcopy(layer)  # HERE
        return {"fake": loss + twin(fakes["image"]).mean()}
""",
    ),
    "scores not reduced": (
        "many values at once",
        "scalar outputs",
        PENALTY
        + """
    def penalty(self, image):
        return torch.autograd.grad(self.judge(image), image)[0].mean()  # HERE
""",
    ),
}

WRAPPED = {
    "unused": (
        "finished reduction",
        """\
    def __init__(self):
        super().__init__()
        self.discriminator.more = nn.Linear(2, 1)
        self.discriminator = DistributedDataParallel(self.discriminator)

    def generator_losses(self, batch, fakes, step):
        return {"adversarial": self.discriminator(fakes["image"]).mean()}  # HERE

    def discriminator_losses(self, batch, fakes, update):
        return {"fake": self.discriminator(fakes["image"]).mean()}
""",
    ),
    "twice": (
        "ready only once",
        """\
    def __init__(self):
        super().__init__()
        self.discriminator = DistributedDataParallel(Twice(1))

    def discriminator_losses(self, batch, fakes, update):
        return {"fake": self.discriminator(fakes["image"]).mean()}


class Twice(Net):
    def forward(self, x):
        hidden = self.first(x)
        once, again = (checkpoint(self.last, hidden, use_reentrant=True) for _ in range(2))
        return once + again
""",
    ),
}


class Noise:
    """Batches that are a function of nothing but their number."""

    def __init__(self):
        self.numbers = count()

    def __next__(self):
        generator = torch.Generator().manual_seed(next(self.numbers))
        return {"real": torch.randn(3, 2, generator=generator)}


@pytest.fixture
def plugin(tmp_path):
    """Write a recipe to a file; its instance, and the numbers of the lines with each mark."""

    def load(source, name="guilty"):
        path = tmp_path / f"{name}.py"
        path.write_text(TOY + source)
        linecache.checkcache()
        spec = spec_from_file_location(name, path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        marks = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for mark in line.partition("#")[2].split():
                marks[mark] = (str(path), number, line.strip())
        torch.manual_seed(0)
        return module.Guilty(), marks

    return load


def game(recipe):
    """A trainer of two plain players."""
    sides = {"generator": recipe.generator, "discriminator": recipe.discriminator}
    players = [
        Player(
            name,
            mine,
            next(other for other in sides.values() if other is not mine),
            torch.optim.SGD(mine.parameters(), lr=0.1),
            lambda count: 1.0,
        )
        for name, mine in sides.items()
    ]
    settings = Settings(batch_size=3, precision="fp32")
    return Trainer(recipe, *players, Noise(), {}, settings, Quiet(), seed=0)


class Quiet:
    """A monitor that shows nothing."""

    run_dir = Path("nowhere")

    def tell(self, kind, text):
        """Say nothing."""

    def note(self, side, terms):
        """Keep nothing."""


def provoke(recipe):
    with strict_gradients():
        trainer = game(recipe)
        for _ in range(3):
            trainer.play()


ROWS = {  # how an explanation begins -> its row
    "has freed it": ("E1", "a graph used twice: cause and line"),
    "was overwritten": ("E2", "a value overwritten: cause, line and operation"),
    "a weight changed": ("E3", "a step between forward and backward: cause and line"),
    "cannot be frozen": ("E4", "a result frozen: cause and line"),
    "only weights keep": ("E5", "the gradient of an image read: cause and line"),
    "nothing that can be trained": ("E7", "a loss cut off from its player: cause and line"),
    "does not depend on": ("E8", "a penalty's input out of the graph: cause and line"),
    "differentiates twice": ("E9", "no second derivative: cause and line"),
    "inference mode": ("E10", "inference tensors, edited weights, copies, vectors: cause and line"),
    "a weight was edited": ("E10",),
    "cannot be copied": ("E10",),
    "many values at once": ("E10",),
}


@pytest.mark.parametrize(
    "claim", [pytest.param(c, marks=pytest.mark.row(*ROWS[CASES[c][0]])) for c in CASES]
)
def test_known_error_names_its_cause_and_the_line_of_the_user(plugin, claim):
    words, original, source = CASES[claim]
    recipe, marks = plugin(source)
    with pytest.raises(ExplainedError) as caught:
        provoke(recipe)
    error = caught.value
    assert error.place.line == marks["HERE"]
    assert error.place.needed == marks.get("NEEDED", error.place.needed)
    assert words in str(error)
    assert original in str(error.__cause__)
    assert "{}:{}: ".format(*marks["HERE"]) in str(error)
    assert "retain_graph" not in str(error)


BACKWARD = ("has freed it", "was overwritten", "a weight changed", "differentiates twice")


@pytest.mark.slow
@pytest.mark.parametrize("claim", CASES)
def test_without_the_explainer_backward_does_not_show_the_line(plugin, claim, monkeypatch):
    """The power of the test above: the line is in no traceback, where a replay is needed."""
    monkeypatch.setattr("gan.explain.KNOWN", ())
    words, original, source = CASES[claim]
    recipe, marks = plugin(source)
    with pytest.raises((RuntimeError, UserWarning), match=original) as caught:
        provoke(recipe)
    frames = traceback.extract_tb(caught.value.__traceback__)
    file, number, _ = marks["HERE"]
    assert any((f.filename, f.lineno) == (file, number) for f in frames) == (words not in BACKWARD)


def test_overwriting_is_told_with_operation_module_player_and_term(plugin):
    recipe, marks = plugin(CASES["activation in place"][2])
    with pytest.raises(ExplainedError) as caught:
        provoke(recipe)
    error = caught.value
    assert (error.player, error.count, error.place.term) == ("generator", 0, "adversarial")
    assert error.place.operation == "torch.nn.functional.relu on [3, 4] in generator.part.1"
    first, line, *_ = str(error).splitlines()
    assert first.startswith("generator, update 0, term 'adversarial': a value was overwritten")
    assert line == "  line:   {}:{}: {}".format(*marks["HERE"])


@pytest.mark.row("E6", "a player wrapped in DDP: named, cause and line")
@pytest.mark.parametrize("claim", WRAPPED)
def test_distributed_wrapper_is_named(plugin, claim):
    original, source = WRAPPED[claim]
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        recipe, marks = plugin(source)
        with pytest.raises(ExplainedError, match="remove the wrapper") as caught:
            provoke(recipe)
    finally:
        torch.distributed.destroy_process_group()
    assert caught.value.place.line == marks.get("HERE", caught.value.place.line)
    assert "wrapped in DistributedDataParallel: discriminator" in str(caught.value)
    assert original in str(caught.value.__cause__)


UNRELATED = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x2 and 3x4)"),
    RuntimeError("Expected all tensors to be on the same device"),
    RuntimeError("stack expects each tensor to be equal size"),
    RuntimeError("expected scalar type Float but found Double"),
    RuntimeError("DataLoader worker is killed by signal"),
    torch.OutOfMemoryError("CUDA out of memory"),
    ValueError("label must be given"),
    KeyError("image"),
    IndexError("index 3 is out of bounds for dimension 0 with size 3"),
    AttributeError("'Guilty' object has no attribute 'grad_fn'"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", UNRELATED, ids=repr)
def test_unrelated_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, explained("generator", 0):
        raise error
    assert caught.value is error
    assert error.__cause__ is None


def test_healthy_updates_are_never_replayed(plugin, monkeypatch):
    recipe, _ = plugin("    pass\n")
    monkeypatch.setattr(explain, "Replay", None)
    provoke(recipe)


def test_replay_that_does_not_show_the_place_says_so(plugin):
    recipe, _ = plugin(
        """\
    calls = 0

    def generator_losses(self, batch, fakes, step):
        self.calls += 1
        out = self.discriminator(fakes["image"]).exp()
        if self.calls == 1:
            out *= 2
        return {"adversarial": out.mean()}
"""
    )
    with pytest.raises(
        ExplainedError, match="replay of this turn did not show the place"
    ) as caught:
        provoke(recipe)
    assert caught.value.place.line is None
    assert "modified by an inplace operation" in str(caught.value)


def test_losses_of_no_recipe_are_explained_without_a_line():
    weight = torch.ones(2, requires_grad=True)

    def losses():
        out = weight.exp()
        out += 1
        return {"adversarial": out.sum()}

    player = Player(
        "generator", nn.Linear(1, 1), nn.Linear(1, 1), torch.optim.SGD([weight]), lambda count: 1.0
    )
    with pytest.raises(ExplainedError, match="was overwritten"):
        player.update(losses, 0)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Softmax(1), nn.LogSigmoid()])
@pytest.mark.row("N12", "a discriminator that ends in probabilities is refused, the layer named")
def test_network_that_ends_in_probabilities_is_refused_by_layer(layer):
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1), layer))
    with pytest.raises(
        ConfigError, match=rf"discriminator ends in {type(layer).__name__} \(1\.1\)"
    ):
        require_logits(network, "discriminator")


@pytest.mark.parametrize("model", ["dcgan", "wnet"])
@pytest.mark.row("N12")
def test_discriminators_of_the_framework_end_in_logits(tiny, model):
    trainer = build(tiny(model))
    trainer.stream.close()
    require_logits(trainer.recipe.discriminator, "discriminator")


def test_sigmoid_inside_a_network_is_allowed():
    require_logits(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1)), "discriminator")
