"""What an arm is called, from its settings: methods, networks, roles."""

import pytest

from afterimage import config
from afterimage.report import arms, published

BLOCKS = {"groups": [1]}
LOYAL = {"method": "loyal", "switch_timestep": 500}
PLAIN = {"method": "baseline"}
UNLEARN = {"base": "unscrubbed", "forget": "zeros", "train": {"updates": 20}}
ARMS = {
    "baseline": PLAIN,
    "rau_net": PLAIN | {"rau_net": BLOCKS},
    "no_blocks": PLAIN | {"rau_net": BLOCKS | {"variant": "none"}},
    "split": LOYAL,
    "tail": LOYAL | {"rau_net": BLOCKS},
    "front": LOYAL | {"rau_net": BLOCKS, "blocks_in": "front"},
    "unscrubbed": PLAIN | {"condition": "label"},
    "retrained": PLAIN | {"condition": "label", "without": "zeros"},
    "finetune": PLAIN | {"base": "unscrubbed", "train": {"updates": 20}, "without": "zeros"},
    "rl": {"method": "erasediff"} | UNLEARN,
    "ascent": {"method": "gradient_ascent"} | UNLEARN,
    "amnesia": {"method": "selective_amnesia"} | UNLEARN,
    "salun": {"method": "salun"} | UNLEARN,
    "agc": {"method": "iet_agc", "shards": 2, "rounds": 1},
}


@pytest.fixture
def settings(params):
    """Arm -> its block, as its training would see it."""
    study = config.parse(
        params | {"arms": ARMS, "forget": {"zeros": {"label": 0}}, "loyal_selection": None}
    )
    return {
        name: arm.model_dump(mode="json") | {"rau_net": _rau_net(study, name)}
        for name, arm in study.arms.items()
    }


def _rau_net(study, name):
    blocks = study.rau_net_of(name)
    return None if blocks is None else blocks.model_dump(mode="json")


def test_method_and_networks(settings):
    assert arms.method_of(settings["rau_net"]) == "rau_net"
    assert arms.method_of(settings["tail"]) == "loyal"
    assert arms.method_of(settings["salun"]) == "salun"
    networks = {name: arms.networks_of(block) for name, block in settings.items()}
    assert networks["baseline"] == networks["no_blocks"] == "plain"
    assert networks["rau_net"] == "blocks"
    assert {name: networks[name] for name in ("split", "tail", "front")} == {
        name: name for name in ("split", "tail", "front")
    }
    assert networks["salun"] is networks["agc"] is None
    assert {network for network in networks.values() if network} <= arms.NETWORKS.keys()
    assert arms.NETWORKS.keys() == arms.NETWORK_COLOURS.keys()


def test_methods_have_colours_of_their_own_and_new_ones_share_another():
    assert arms.METHOD_COLOURS.keys() - {"rau_net"} <= config.METHODS.keys()
    assert len(set(arms.METHOD_COLOURS.values())) == len(arms.METHOD_COLOURS)
    assert arms.method_colour("a new one") not in arms.METHOD_COLOURS.values()


def test_roles_are_the_rows_of_the_published_table(settings):
    roles = {name: arms.role_of(settings[name]) for name in list(ARMS)[6:13]}
    assert roles == {
        "unscrubbed": "unscrubbed",
        "retrained": "retrained",
        "finetune": "fine-tune",
        "rl": "EraseDiff rl",
        "ascent": "NegGrad",
        "amnesia": "SA",
        "salun": "SalUn",
    }
    noise = settings["rl"] | {"target": "uniform_noise"}
    assert arms.role_of(noise) == "EraseDiff noise"
    assert {*roles.values(), "EraseDiff noise"} - {arms.RETRAINED} == published.ERASEDIFF.keys()


def test_methods_of_no_published_table_have_their_own_names(settings):
    for method, name in (("siss", "SISS"), ("esd", "ESD"), ("uce", "UCE")):
        assert arms.role_of(settings["ascent"] | {"method": method}) == name
        assert name not in published.ERASEDIFF
        assert arms.method_colour(method) != arms.OTHER_METHOD


def test_arms_are_alike_but_for_what_is_left_out(settings):
    other = settings["baseline"] | {"train": {"batch_size": 1}}
    assert not arms.alike(settings["agc"], other)
    assert arms.alike(settings["agc"], other, ("train",))
    assert not arms.alike(settings["unscrubbed"], settings["retrained"], ("train",))


def test_arms_are_alike_but_for_method_and_budget(settings):
    assert arms.alike(settings["agc"], settings["baseline"])
    assert not arms.alike(settings["agc"], settings["rau_net"])
    assert not arms.alike(settings["unscrubbed"], settings["retrained"])
    assert not arms.alike(settings["unscrubbed"], settings["baseline"])
    assert not arms.alike(settings["unscrubbed"], settings["finetune"])
