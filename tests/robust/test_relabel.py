"""Labels that are corrected while they are learnt."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, one_hot

from gan.features import Lesson
from gan.robust import relabel
from gan.robust.belief import Belief, apart, corrupted, posterior, rostered
from gan.robust.relabel import (
    Settings,
    correct,
    entropy_loss,
    label_loss,
    plain,
    prior_loss,
)

CPU = torch.device("cpu")


# ---- losses -------------------------------------------------------------------------------------


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(3, 5, generator=generator, dtype=torch.float64)


@pytest.fixture
def label():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, generator=generator, dtype=torch.float64).softmax(1)


def divergence(one, other):
    """KL of two distributions, term by term."""
    return sum(p * math.log(p / q) for p, q in zip(one, other, strict=True) if p > 0)


def test_label_loss_is_the_mean_divergence_from_labels_to_predictions(logits, label):
    predictions = logits.softmax(1)
    pairs = list(zip(label.tolist(), predictions.tolist(), strict=True))
    expected = sum(divergence(y, s) for y, s in pairs) / 3
    found = label_loss(logits, label).item()
    assert found == pytest.approx(expected, rel=1e-12)
    log = logits.log_softmax(1)
    assert found == pytest.approx(kl_div(log, label, reduction="batchmean").item(), rel=1e-12)
    turned = sum(divergence(s, y) for y, s in pairs) / 3
    assert all(abs(found - wrong) > 0.1 for wrong in (turned, expected / 5, expected * 3))


def test_label_loss_of_certain_labels_is_cross_entropy_and_has_its_gradient(logits):
    classes = torch.tensor([4, 0, 2])
    logits.requires_grad_()
    found = label_loss(logits, one_hot(classes, 5).double())
    expected = torch.nn.functional.cross_entropy(logits, classes)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_label_loss_vanishes_with_its_gradient_where_labels_are_predictions(logits):
    logits.requires_grad_()
    loss = label_loss(logits, logits.detach().softmax(1))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-12


def test_prior_loss_is_the_divergence_from_the_prior_to_the_mean_prediction(logits):
    prior = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.0], dtype=torch.float64)  # a class may be absent
    predictions = logits.softmax(1)
    expected = divergence(prior.tolist(), predictions.mean(0).tolist())
    found = prior_loss(logits, prior).item()
    assert found == pytest.approx(expected, rel=1e-12)
    log_mean = predictions.mean(0).log()
    assert found == pytest.approx(kl_div(log_mean, prior, reduction="sum").item(), rel=1e-12)
    per_sample = sum(divergence(prior.tolist(), s) for s in predictions.tolist()) / 3
    present = prior[:4].tolist(), predictions.mean(0)[:4].tolist()
    turned = divergence(present[1], present[0])
    of_mean_logits = divergence(prior.tolist(), logits.mean(0).softmax(0).tolist())
    assert all(abs(found - wrong) > 0.01 for wrong in (per_sample, turned, of_mean_logits))


def test_prior_loss_leaves_sure_predictions_of_balanced_classes_alone():
    even = torch.full((4,), 0.25, dtype=torch.float64)
    sure = 50 * torch.eye(4, dtype=torch.float64)
    assert prior_loss(sure, even).item() == pytest.approx(0, abs=1e-12)
    all_in_one = prior_loss(sure[[2, 2, 2]], even).item()
    assert all_in_one == pytest.approx(0.75 * 50 - math.log(4), rel=1e-12)


def test_entropy_loss_is_the_mean_entropy_of_predictions(logits):
    predictions = logits.softmax(1)
    expected = -sum(p * math.log(p) for s in predictions.tolist() for p in s) / 3
    found = entropy_loss(logits).item()
    assert found == pytest.approx(expected, rel=1e-12)
    reference = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    assert found == pytest.approx(reference, rel=1e-12)
    of_mean = torch.distributions.Categorical(probs=predictions.mean(0)).entropy().item()
    assert all(abs(found - wrong) > 0.05 for wrong in (expected / 5, of_mean, -expected))
    assert entropy_loss(torch.zeros(2, 5)).item() == pytest.approx(math.log(5))


def test_losses_are_finite_with_finite_gradients_where_predictions_are_certain():
    logits = torch.tensor([[2e4, -2e4, 0.0], [-2e4, 2e4, 0.0]], requires_grad=True)
    label = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss = label_loss(logits, label) + prior_loss(logits, label.mean(0)) + entropy_loss(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


# ---- labels -------------------------------------------------------------------------------------


def test_noise_is_exactly_the_share_never_the_own_class_and_any_other_alike():
    truth = np.arange(8000) % 5
    noisy = corrupted(truth, 5, 0.4, seed=3)
    changed = noisy != truth
    assert changed.sum() == 3200
    steps = np.bincount((noisy - truth)[changed] % 5, minlength=5)
    assert steps[0] == 0
    assert steps[1:].min() > 700  # 800 each; the standard deviation is 24
    assert np.array_equal(noisy, corrupted(truth, 5, 0.4, seed=3))
    assert not np.array_equal(noisy, corrupted(truth, 5, 0.4, seed=4))
    assert np.array_equal(truth, np.arange(8000) % 5)  # what was given stays


def test_the_average_is_of_the_last_epochs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 6, 4, generator=generator)  # [epochs, N, K]
    given = torch.tensor([0, 1, 2, 3, 0, 1])
    belief = Belief(given, 4, window=3)
    for epoch, made in enumerate(logits):
        for places in torch.randperm(6, generator=generator).split(2):
            belief.record(epoch, places, made[places])
        last = logits[max(0, epoch - 2) : epoch + 1].softmax(2).mean(0)
        torch.testing.assert_close(belief.average(epoch), last)
        assert torch.equal(belief.label, one_hot(given, 4).float())


def test_posterior_is_bayes_rule_with_the_noise_of_the_surer_half():
    """Of 40 sure predictions 12 are contradicted; 20 unsure ones are not counted."""
    prediction = torch.full((60, 4), 0.02, dtype=torch.float64)
    prediction[:40, 0] = 0.94
    prediction[40:] = torch.tensor([0.4, 0.5, 0.06, 0.04], dtype=torch.float64)
    given = torch.zeros(60, dtype=torch.long)
    given[:12] = 1
    given[50:] = 3
    wrong = 13 / 42
    found = posterior(prediction, given)
    for row in (0, 20, 45, 55):
        chances = [
            p * (1 - wrong if k == given[row] else wrong / 3)
            for k, p in enumerate(prediction[row].tolist())
        ]
        expected = [chance / sum(chances) for chance in chances]
        assert found[row].tolist() == pytest.approx(expected, rel=1e-6)
    kept = found.argmax(1).tolist()
    assert kept == [0] * 50 + [1] * 10  # a sure one is kept; between two, the given one counts


def test_two_images_of_a_group_are_told_apart():
    """Odds multiply: with p and q for class 0, it is the first's with p(1 - q) to q(1 - p)."""
    p, q, classes = 0.9, 0.6, 2
    prediction = torch.tensor([[p, 1 - p], [q, 1 - q]], dtype=torch.float64)
    found = apart(prediction, rostered(np.array([0, 0]), classes))
    first = 1 / (1 + math.sqrt(q * (1 - p) / (p * (1 - q))))  # what scaling comes to for two
    expected = [[first, 1 - first], [1 - first, first]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert prediction.argmax(1).tolist() == [0, 0]
    assert found.argmax(1).tolist() == [0, 1]


def test_scaling_keeps_the_odds_within_each_group_and_gives_every_class_once():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(8, 4, generator=generator, dtype=torch.float64).softmax(1)
    groups = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    found = apart(prediction, rostered(groups, 4))
    for group in (0, 1):
        table, before = found[groups == group], prediction[groups == group]
        assert (table.sum(0) - 1).abs().max() < 1e-5  # as near as the rounds lead
        torch.testing.assert_close(table.sum(1), torch.ones(4, dtype=torch.float64))
        ratio = (table / before).log()  # a sum of a row's number and a column's
        mixed = ratio - ratio.mean(0) - ratio.mean(1, keepdim=True) + ratio.mean()
        assert mixed.abs().max() < 1e-9
    mixed_up = apart(prediction, rostered(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 4))
    assert (mixed_up - found).abs().max() > 0.01


def test_a_group_that_lacks_classes_uses_none_of_them_twice():
    """The odds of class 0, 7/3 and 3/2, are scaled until it is one image's."""
    prediction = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.8, 0.1, 0.1]])
    found = apart(prediction, rostered(np.array([0, 0, 1]), 3))
    odds = math.sqrt((7 / 3) / (3 / 2))
    first = odds / (1 + odds)
    expected = [
        [first, (1 - first) * 2 / 3, (1 - first) / 3],
        [1 - first, first / 4, first * 3 / 4],
    ]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    assert torch.allclose(found[2], prediction[2])  # alone: as it was
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert apart(sure, rostered(np.array([0, 0]), 2)).isfinite().all()
    with pytest.raises(ValueError, match="3 images are of group 1, which cannot have as many"):
        rostered(np.array([0, 1, 1, 1]), 2)


# ---- training -----------------------------------------------------------------------------------


def stripes(count=128, noise=0.25):
    """Noisy stripes in four directions, the truth, and a lesson of labels partly wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(count) % 4
    across = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])[truth]
    place = torch.linspace(0, 3 * math.pi, 16)
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    wave = across[:, 0, None, None] * place + across[:, 1, None, None] * place[:, None] + phase
    images = 0.5 * wave.sin() + 0.3 * torch.randn(count, 16, 16, generator=generator)
    given = corrupted(truth.numpy(), 4, noise, seed=0)
    lesson = Lesson(lambda rows: images[rows, None], np.arange(count), {"way": given}, "content")
    return lesson, truth.numpy(), given


SMALL = Settings(epochs=12, start=4, window=3, lr=0.05, width=8, batch_size=16)


def test_most_labels_are_corrected_that_plain_training_learns_by_heart(tmp_path):
    lesson, truth, given = stripes()
    corrected = correct(lesson, 4, SMALL, CPU, tmp_path / "joint").argmax(1)
    ordinary = plain(lesson, 4, SMALL, CPU, tmp_path / "plain").argmax(1)
    assert (given == truth).mean() == 0.75
    assert (corrected == truth).mean() > 0.97
    assert (ordinary == given).mean() > 0.95
    assert (ordinary == truth).mean() < 0.8


@pytest.fixture
def tracked(monkeypatch):
    """The labels learnt in each epoch, and the predictions made in it."""
    learnt, predictions, epoch_of = [], [], relabel._epoch

    def epoch(classifiers, belief, *others):
        learnt.append(belief.label.clone())
        loss = epoch_of(classifiers, belief, *others)
        predictions.append(belief.predictions[others[-1] % len(belief.predictions)].clone())
        return loss

    monkeypatch.setattr(relabel, "_epoch", epoch)
    return learnt, predictions


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("evidence", [False, True])
def test_labels_are_given_until_the_start_and_then_follow_the_predictions(
    tmp_path, tracked, hard, evidence
):
    lesson, _, labels = stripes(32)
    given = torch.tensor(labels)
    settings = SMALL._replace(epochs=6, start=3, window=2, width=2, hard=hard, evidence=evidence)
    result = correct(lesson, 4, settings, CPU, tmp_path)
    learnt, predictions = tracked
    for label in learnt[:3]:
        assert torch.equal(label, one_hot(given, 4).float())

    def held(epoch):
        average = (predictions[epoch - 1] + predictions[epoch]) / 2
        return posterior(average, given) if evidence else average

    for epoch in (2, 3, 4):
        expected = one_hot(held(epoch).argmax(1), 4).float() if hard else held(epoch)
        torch.testing.assert_close(learnt[epoch + 1], expected)
    torch.testing.assert_close(torch.tensor(result), held(5))


def test_the_rate_is_high_while_the_given_labels_are_learnt(tmp_path, monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def counted(self):
        rates.append(self.param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    lesson, _, _ = stripes(32)
    correct(lesson, 4, SMALL._replace(epochs=6, start=2, width=2), CPU, tmp_path)
    expected = [0.05, 0.05, 0.05, 0.05 * (1 + math.sqrt(0.5)) / 2, 0.025]
    assert rates[0::2] == pytest.approx([*expected, 0.05 * (1 - math.sqrt(0.5)) / 2])


def test_every_image_is_predicted_once_an_epoch_by_the_network_that_learns_it(tmp_path, tracked):
    lesson, _, _ = stripes(33)  # no whole number of batches
    seen = []
    counting = lesson._replace(images=lambda rows: (seen.extend(rows), lesson.images(rows))[1])
    correct(counting, 4, SMALL._replace(epochs=1, width=2), CPU, tmp_path)
    assert sorted(seen[1:]) == list(range(33))  # the first only tells the channels
    torch.testing.assert_close(tracked[1][0].sum(1), torch.ones(33))


def test_groups_mend_what_single_images_cannot_tell(tmp_path, tracked):
    lesson, truth, given = stripes(32)
    groups = np.arange(32) // 4  # each has every direction once
    settings = SMALL._replace(epochs=6, start=3, window=2, width=2, evidence=True)
    result = correct(lesson, 4, settings, CPU, tmp_path, groups=groups)
    average = (tracked[1][4] + tracked[1][5]) / 2
    expected = apart(posterior(average, torch.tensor(given)), rostered(groups, 4))
    torch.testing.assert_close(torch.tensor(result), expected)
    np.testing.assert_allclose(result.reshape(8, 4, 4).sum(1), 1, atol=0.02)
    with pytest.raises(ValueError, match="was left by a relabelling of other images"):
        correct(lesson, 4, settings, CPU, tmp_path)


def test_the_seed_decides(tmp_path):
    lesson, _, _ = stripes(32)
    settings = SMALL._replace(epochs=2, width=2)
    runs = [
        correct(lesson, 4, settings._replace(seed=seed), CPU, tmp_path / name)
        for seed, name in [(0, "one"), (0, "same"), (1, "other")]
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])


@pytest.mark.parametrize("training", [correct, plain])
def test_what_was_killed_goes_on_to_the_same_end(tmp_path, monkeypatch, capsys, training):
    lesson, _, _ = stripes(32)
    settings = SMALL._replace(epochs=5, start=2, width=2)
    whole = training(lesson, 4, settings, CPU, tmp_path / "whole")
    epoch_of = relabel._epoch

    def killed(*given):
        if given[-1] == 3:
            raise KeyboardInterrupt
        return epoch_of(*given)

    monkeypatch.setattr(relabel, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        training(lesson, 4, settings, CPU, tmp_path / "killed")
    monkeypatch.setattr(relabel, "_epoch", epoch_of)
    capsys.readouterr()
    again = training(lesson, 4, settings, CPU, tmp_path / "killed")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("goes on after epoch 3, from ")
    assert sum(line.startswith("killed epoch ") for line in said) == 2
    assert np.array_equal(whole, again)
    with pytest.raises(ValueError, match="was left by a relabelling of other images, labels"):
        training(lesson, 4, settings._replace(alpha=0.5, lr=0.01), CPU, tmp_path / "killed")


def test_a_loss_that_is_no_number_names_the_way_out(tmp_path):
    lesson, _, _ = stripes(32)
    broken = lesson._replace(images=lambda rows: lesson.images(rows) / 0)
    with pytest.raises(ValueError, match=r"the loss is nan in epoch 1: lower --lr, which is 0\.05"):
        correct(broken, 4, SMALL, CPU, tmp_path)
