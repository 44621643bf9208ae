"""Counts of U-Nets against real ones, against closed forms, and as they are kept."""

import json
import os
import subprocess
import sys
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from afterimage.config import ConfigError, Model, TransferBlocks
from afterimage.diffusion.model import build_unet
from afterimage.plan.cost import network

DIGITS = {"channels": [16, 32], "attention": [False, True], "layers_per_block": 1}
DEEP = {
    "channels": [8, 16, 16],
    "attention": [True, False, True],
    "layers_per_block": 2,
    "attention_head_dim": 4,
}
SCALED = {
    "channels": [8, 8],
    "attention": [False, False],
    "norm_groups": 4,
    "time_embedding": "scale_shift",
}


pytestmark = pytest.mark.usefixtures("cache")


def kept_by_autograd(net: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Return the float32 numbers that a real forward pass keeps for its backward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        prediction = net(*inputs).sample
    assert prediction.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("settings", [DIGITS, DEEP, SCALED])
@pytest.mark.parametrize("blocks", [None, {"groups": [1, 2]}, {"groups": [2], "variant": "none"}])
def test_a_count_is_that_of_the_network_that_is_trained(settings, blocks):
    model, chosen = Model(**settings), blocks and TransferBlocks(**blocks)
    net = build_unet(model, (16, 8, 3), blocks=chosen)
    with FlopCounterMode(display=False) as flop, torch.no_grad():
        net.to("meta")(torch.zeros(1, 3, 16, 8, device="meta"), torch.zeros(1, device="meta"))
    found = network.unet(model, 16, 8, 3, chosen)
    assert found.flop == flop.get_total_flops()
    assert found.parameters == sum(weight.numel() for weight in net.parameters())


def test_unet_of_the_cifar_studies():
    """Ho et al. 2020 give 35.7 M weights."""
    model = Model(
        channels=[128, 256, 256, 256],
        attention=[False, True, False, False],
        attention_head_dim=256,
        norm_groups=32,
        dropout=0.1,
    )
    found = network.unet(model, 32, 32, 3)
    assert found.parameters == 35_746_307
    assert found.flop == pytest.approx(12.44e9, rel=1e-3)


def test_one_transfer_block_by_hand():
    """3 x 3 from 8 to 8 channels: every result has 72 products and as many sums, and a bias."""
    model = Model(channels=[8, 8], attention=[False, False], norm_groups=4)
    plain = network.unet(model, 8, 8, 1)
    more = network.unet(model, 8, 8, 1, TransferBlocks(groups=[0]))
    assert more.flop - plain.flop == 2 * 8 * 8 * 8 * 72
    assert more.parameters - plain.parameters == 8 * 72 + 8


def test_twice_the_side_is_four_times_the_convolutions():
    model = Model(channels=[8, 8], attention=[False, False], norm_groups=4)
    small, large = network.unet(model, 8, 8, 1), network.unet(model, 16, 16, 1)
    fixed = sum(2 * inside * 8 for inside in [32] * (2 * 2 + 2 + 2 * 3)) + 2 * (
        8 * 32 + 32 * 32
    )  # what takes the timestep
    assert large.flop - fixed == 4 * (small.flop - fixed)
    assert large.parameters == small.parameters


@pytest.mark.parametrize(
    ("settings", "side", "batch"), [(DIGITS, 8, 16), (DEEP, 8, 16), (DEEP, 32, 2)]
)
def test_kept_activations_are_those_that_autograd_keeps(settings, side, batch):
    """With attention among 1,024 places too, whose weights no fused kernel keeps."""
    model = Model(**settings)
    net = build_unet(model, (side, side, 3))
    inputs = torch.randn(batch, 3, side, side), torch.zeros(batch, dtype=torch.int64)
    kept = kept_by_autograd(net, *inputs) / batch
    assert network.unet(model, side, side, 3).values == pytest.approx(kept, rel=0.1)


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet freed, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize(("settings", "side", "batch"), [(DIGITS, 16, 64), (DEEP, 32, 16)])
@pytest.mark.parametrize("again", [False, True])
def test_memory_is_what_a_training_allocates(settings, side, batch, again):
    """The most at once over forward and backward pass, gradients and all."""
    model = Model(**settings)
    net = build_unet(model, (side, side, 3))
    if again:
        net.enable_gradient_checkpointing()
    inputs = torch.randn(batch, 3, side, side), torch.zeros(batch, dtype=torch.int64)
    with Allocated() as allocated:
        net(*inputs).sample.square().mean().backward()
    found = network.unet(model, side, side, 3)
    counted = 4 * batch * (found.checkpointed if again else found.values)
    assert counted == pytest.approx(allocated.most, rel=0.15)
    assert found.checkpointed < 0.75 * found.values


def test_sides_are_rounded_up_to_such_as_the_levels_can_halve():
    model = Model(**DEEP)
    assert network.unet(model, 29, 31, 1) == network.unet(model, 32, 32, 1)


def test_settings_that_make_no_network_are_an_error_and_are_not_kept(cache):
    narrow = Model(channels=[8, 4], attention=[True, False], norm_groups=4, attention_head_dim=8)
    for _ in range(2):
        with pytest.raises(ConfigError, match="middle block has attention"):
            network.unet(narrow, 8, 8, 1)
    assert not cache.exists()


PLANNED = """
import sys
from afterimage.config import Model
from afterimage.plan.cost import network
print(*network.unet(Model(**{model}), 8, 8, 1), "torch" in sys.modules)
"""


def planned(model: dict) -> list[str]:
    """Return the counts of a network in a process of its own, and whether torch was imported."""
    done = subprocess.run(
        [sys.executable, "-c", PLANNED.format(model=model)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_network_that_was_counted_before_needs_no_torch(cache):
    *first, imported = planned(SCALED)
    assert imported == "True"
    assert len(list(cache.iterdir())) == 1
    *again, imported = planned(SCALED)
    assert (again, imported) == (first, "False")


def test_a_count_is_kept_for_these_settings_this_code_and_these_versions_alone(cache, monkeypatch):
    model = Model(**SCALED)
    network.unet(model, 8, 8, 1)
    for target, name in (
        (network, "version"),
        (network.provenance, "fingerprint"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, lambda name: "another")
            network._known.cache_clear()
            network.unet(model, 8, 8, 1)
    network.unet(model, 8, 8, 3)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"flop": 1}', "[1, 2, null]", '["a", 1, 2]'])
def test_a_damaged_count_is_made_again(cache, content):
    model = Model(**SCALED)
    counts = network.unet(model, 8, 8, 1)
    (file,) = cache.iterdir()
    file.write_text(content)
    network._known.cache_clear()
    assert network.unet(model, 8, 8, 1) == counts
    assert json.loads(file.read_text()) == list(counts)


def test_where_nothing_can_be_kept_it_is_counted_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for home in (str(tmp_path / "file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        network._known.cache_clear()
        assert network.unet(Model(**SCALED), 8, 8, 1).parameters == 27785
    assert os.listdir(tmp_path) == ["file"]
