"""Signatures become checked configuration; only registered names are built."""

from typing import Literal

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from gan.config.signature import coerce
from gan.registry import ConfigError, Count, Fraction, Positive, create, names, register


def node(kind, name):
    return OmegaConf.to_container(ConfigStore.instance().repo[kind][f"{name}.yaml"].node)


def test_defaults_of_a_signature_become_a_hydra_node():
    falling = {"end": 1.0, "images": 500_000}
    assert node("penalty", "r1") == {"name": "r1", "weight": 10.0, "every": 1, **falling}


def test_interpolations_replace_defaults_and_given_parameters_are_no_configuration():
    assert node("generator", "wnet")["size"] == "${image.size}"
    assert "styles" not in node("generator", "wnet")


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (Count, 1, 1),
        (Fraction, 1, 1.0),
        (int | None, None, None),
        (tuple[float, float], [0, 0.9], (0.0, 0.9)),
        (list[int], [1, 2], [1, 2]),
        (dict[int, Count], {0: 5}, {0: 5}),
        (Literal["auto", "on", "off"], True, "on"),
        (float | tuple[float, float], [0.1, 0.2], (0.1, 0.2)),
    ],
)
def test_fitting_values_pass_with_their_type(annotation, value, expected):
    got = coerce(annotation, value, "key")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (Count, 0, "key must be at least 1, not 0"),
        (Count, -3, "key must be at least 1, not -3"),
        (Count, 1e5, "whole number written as 100_000"),
        (Count, 1.5, "key must be a whole number, not 1.5"),
        (Count, True, "key must be a whole number, not True"),
        (Positive, 0, "key must be greater than 0"),
        (Positive, float("nan"), "key must be a finite number"),
        (Positive, float("inf"), "key must be a finite number"),
        (Positive, "abc", "key must be a number, not 'abc'"),
        (Fraction, 1.2, "at least 0 and at most 1"),
        (bool, 1, "key must be true or false"),
        (str, 3, "key must be a word"),
        (tuple[float, float], [1, 2, 3], "key must hold 2 values"),
        (Literal["cpu", "cuda"], "cdua", "did you mean 'cuda'"),
        (dict[int, Count], {0: 0}, r"key\.0 must be at least 1"),
    ],
)
def test_unfitting_values_are_refused_by_name(annotation, value, message):
    with pytest.raises(ConfigError, match=message):
        coerce(annotation, value, "key")


def test_unknown_names_and_parameters_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'hinge'"):
        create("adversarial", "hing")
    with pytest.raises(ConfigError, match=r"penalty\.r1\.wieght is unknown; did you mean 'weight'"):
        create("penalty", "r1", wieght=1.0)


@pytest.mark.row("X3")
def test_a_target_is_refused():
    with pytest.raises(ConfigError, match="only registered names are built"):
        create("penalty", "r1", _target_="os.system")


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ConfigError, match="registered already"):
        register("penalty", "r1")(lambda: None)


def test_parameters_need_annotations():
    with pytest.raises(ConfigError, match="parameter 'weight' needs an annotation"):
        register("penalty", "bare")(lambda weight: None)


def test_names_are_listed():
    assert {
        "minimax",
        "nonsaturating",
        "bce",
        "lsgan",
        "hinge",
        "wasserstein",
        "focal",
        "rpgan",
        "ragan",
    } <= set(names("adversarial"))
