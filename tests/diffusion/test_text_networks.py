"""Information transfer blocks and the router on networks that are conditioned on texts."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from afterimage.config import ConfigError
from afterimage.diffusion.rau_net import RAUNetCondition
from afterimage.diffusion.router import TimestepRouter

TINY = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
SD_2_1 = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def net(seed: int, kind=UNet2DConditionModel, **settings) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(**(TINY | settings)).eval()


def with_blocks(seed: int, groups=(1, 2), variant: str = "trained_random", **settings):
    return net(seed, RAUNetCondition, transfer_groups=groups, transfer_variant=variant, **settings)


def inputs(count: int = 4):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((count, 4, 8, 8), generator=generator)
    texts = torch.randn((count, 5, 12), generator=generator)
    return latents, torch.tensor([1, 900, 499, 500])[:count], texts


def test_identity_blocks_are_the_network_without_blocks_bit_for_bit():
    latents, times, texts = inputs()
    plain, blocks = net(1), with_blocks(1, variant="trained_identity")
    assert torch.equal(plain(latents, times, texts).sample, blocks(latents, times, texts).sample)
    other = with_blocks(1)
    assert not torch.equal(plain(latents, times, texts).sample, other(latents, times, texts).sample)


def test_stable_diffusion_2_1_has_the_papers_blocks():
    """SC3 and SC4 are skip tensors 7 to 11; five convolutions of 1,280 channels."""
    with torch.device("meta"):
        network = RAUNetCondition(transfer_groups=[3, 4], **SD_2_1)
    assert [int(index) for index in network.transfers] == [7, 8, 9, 10, 11]
    blocks = sum(weight.numel() for weight in network.transfers.parameters())
    assert blocks == 73_734_400
    assert sum(weight.numel() for weight in network.parameters()) - blocks == 865_910_724


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_get_gradients_with_and_without_checkpointing(checkpointing):
    network = with_blocks(1).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    network(*inputs()).sample.square().sum().backward()
    gradients = [weight.grad for weight in network.transfers.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_stored_network_is_the_same_again(tmp_path):
    network = with_blocks(2, groups=[2], layers_per_block=(1, 2))
    network.save_pretrained(tmp_path)
    again = RAUNetCondition.from_pretrained(tmp_path)
    assert again.config["transfer_groups"] == [2]
    assert again.config["cross_attention_dim"] == 12
    assert sorted(again.transfers) == ["3", "4"]
    assert torch.equal(again(*inputs()).sample, network(*inputs()).sample)


def test_unknown_groups_are_refused():
    with pytest.raises(ConfigError, match=r"groups = \[3\]: the network has groups 0 to 2"):
        with_blocks(1, groups=[3])


def test_the_router_gives_each_network_the_texts_of_its_own_samples():
    latents, times, texts = inputs()
    front, tail = net(1), with_blocks(2)
    router = TimestepRouter(front, tail, 500)
    together = router(latents, times, encoder_hidden_states=texts).sample
    assert torch.equal(together, router(latents, times, texts, return_dict=False)[0])
    for row, time in enumerate(times.tolist()):
        own = front if time < 500 else tail
        single = own(*(part[row : row + 1] for part in (latents, times, texts))).sample
        torch.testing.assert_close(together[row : row + 1], single)


def test_the_router_divides_conditions_in_dictionaries():
    """As Stable Diffusion XL is given them."""
    settings = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 12,
    }
    front, tail = net(1, **settings), net(2, **settings)
    latents, times, texts = inputs()
    added = {
        "text_embeds": torch.randn((4, 12), generator=torch.Generator().manual_seed(1)),
        "time_ids": torch.arange(24.0).reshape(4, 6),
    }
    together = TimestepRouter(front, tail, 500)(
        latents, times, encoder_hidden_states=texts, added_cond_kwargs=added
    ).sample
    for row, time in enumerate(times.tolist()):
        rows = slice(row, row + 1)
        single = (front if time < 500 else tail)(
            latents[rows],
            times[rows],
            texts[rows],
            added_cond_kwargs={name: value[rows] for name, value in added.items()},
        ).sample
        torch.testing.assert_close(together[rows], single)


def test_a_stored_router_is_the_same_again(tmp_path):
    router = TimestepRouter(net(1), with_blocks(2), 500)
    router.save_pretrained(tmp_path)
    again = TimestepRouter.from_pretrained(tmp_path)
    assert isinstance(again.front, UNet2DConditionModel)
    assert isinstance(again.tail, RAUNetCondition)
    assert not isinstance(again.front, RAUNetCondition)
    assert torch.equal(again(*inputs()).sample, router(*inputs()).sample)
