"""Which packages the expensive steps depend on: a change of any other leaves their results up to
date.

A result is out of date when the code of a module that its step imports, directly or indirectly,
changes. So a helper in the wrong package has a price: hours of computation for an unrelated edit.
"""

import pytest

from afterimage import config, provenance

BASE = {"artifacts", "images", "progress", "provenance", "scratch", "seeds"}
"""Stores, images, fingerprints and random streams, which every step needs."""

TRAINING = BASE | {"data.forget", "data.members", "diffusion", "methods.run", "training"}
GRADIENTS = {
    "attribution.features",
    "attribution.flags",
    "attribution.gradients",
    "attribution.queries",
    "attribution.replicate",
}
RETRAINING = {
    "attribution.flags",
    "attribution.gradients.noise",
    "attribution.judges.retrain",
    "attribution.judges.retraining_effect",
    "attribution.judges.subsets",
    "attribution.queries",
    "attribution.replicate",
    "methods.baseline",
    "training",
}
METHOD_PACKAGES = {
    "ambient": {"methods.ambient", "methods.baseline"},
    "iet_agc": {"methods.iet_agc"},
    "erasediff": {"methods.erasediff", "methods.unlearning"},
    "gradient_ascent": {"methods.gradient_ascent", "methods.unlearning"},
    "esd": {"methods.esd", "methods.unlearning"},
    "salun": {"methods.salun", "methods.unlearning"},
    "siss": {"methods.siss", "methods.unlearning"},
    "selective_amnesia": {"methods.selective_amnesia", "methods.unlearning"},
    "dcr": {"methods.dcr", "methods.at_inference"},
    "wen": {"methods.wen", "methods.at_inference"},
    "amg": {"methods.amg", "methods.at_inference"},
}
"""What a method has besides the module of its name."""


def outside(entries: tuple[str, ...], allowed: set[str]) -> list[str]:
    """Return the modules that a step depends on outside the allowed packages and modules.

    The ``__init__`` of a package that contains an allowed module is allowed, too.
    """
    names = [
        module.removeprefix("afterimage").removeprefix(".")
        for module in provenance.modules_of(*entries)
    ]
    parents = {name.rpartition(".")[0] for name in allowed}
    return [
        name
        for name in names
        if not any(name == package or name.startswith(f"{package}.") for package in allowed)
        and name not in {"", *parents}
    ]


@pytest.mark.parametrize("method", config.METHODS)
def test_a_training_depends_on_its_method_and_on_no_other(method):
    entries = ("afterimage.methods.run", config.METHODS[method])
    allowed = TRAINING | METHOD_PACKAGES.get(method, {f"methods.{method}"})
    assert outside(entries, allowed) == []


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("diffusion.sample", BASE | {"diffusion"}),
        ("attribution.features", BASE | GRADIENTS | {"data.members", "diffusion"}),
        ("attribution.judges.retrain", BASE | RETRAINING | {"diffusion"}),
        (
            "attribution.judges.counterfactual",
            BASE
            | RETRAINING
            | {"attribution.judges.counterfactual", "diffusion"}
            | {"metrics.classifier", "metrics.distances"},
        ),
    ],
)
def test_an_expensive_step_depends_on_these_packages_alone(module, allowed):
    assert outside((f"afterimage.{module}",), allowed) == []


@pytest.mark.parametrize(
    "module",
    [
        "methods.run",
        "diffusion.sample",
        "attribution.features",
        "attribution.judges.retrain",
        "attribution.judges.counterfactual",
    ],
)
def test_no_expensive_step_depends_on_an_attack(module):
    modules = provenance.modules_of(f"afterimage.{module}", *config.METHODS.values())
    assert not [name for name in modules if name.startswith("afterimage.attacks")]


def test_scores_depend_on_the_attributors_that_they_compute():
    entries = ("afterimage.attribution.scores", config.ATTRIBUTORS["trak"])
    families = set(config.ATTRIBUTORS.values()) & set(provenance.modules_of(*entries))
    assert families == {config.ATTRIBUTORS["trak"]}


def test_what_is_outside_is_named():
    """The check sees a dependency: a training without its method's package has one too many."""
    entries = ("afterimage.methods.run", config.METHODS["salun"])
    assert outside(entries, TRAINING | {"methods.salun"}) == ["methods.unlearning"]
