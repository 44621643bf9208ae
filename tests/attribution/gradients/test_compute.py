"""The features of a set of images, against plain automatic differentiation and for what must not
change them."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients import compute
from afterimage.attribution.gradients.noise import gaussian_noise, random_signs
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config import ConfigError
from afterimage.config.attribution import Features
from afterimage.diffusion.denoising import task_of
from afterimage.images import Images

SMALL = {"noise": "per_image", "timesteps": 2, "dimension": 32, "batch_size": 7}


@pytest.fixture
def features(scheduler_config, images):
    """Return a function that computes features of the digits; keywords lie over ``SMALL``."""

    def make(
        net,
        readouts=(*READOUTS, "probe"),
        of: Images = images,
        part: str = "train",
        seed: int = 3,
        **settings,
    ):
        return compute.project_gradients(
            net,
            task_of(net, scheduler_config, of),
            of.ids,
            part,
            Features(**SMALL | settings),
            readouts,
            seed,
        )

    return make


def arrays(found: compute.ProjectedGradients) -> dict[str, np.ndarray]:
    return found.features | {"rows": found.rows, "residual": found.residual}


def close(
    one: compute.ProjectedGradients,
    other: compute.ProjectedGradients,
    rows: np.ndarray | slice = slice(None),
) -> None:
    wanted = arrays(other)
    assert arrays(one).keys() == wanted.keys()
    for name, values in arrays(one).items():
        np.testing.assert_allclose(
            values,
            wanted[name][rows],
            rtol=1e-4,
            atol=1e-5 * np.abs(wanted[name]).max(initial=0),
            err_msg=name,
        )


def test_features_are_means_of_the_gradients_of_single_images(
    tiny_net, scheduler_config, images, features
):
    """Image by image and timestep by timestep, with torch's own backward pass and the DDPM formula
    for the noisy image."""
    net, few = tiny_net(), images.take(np.arange(3))
    found = features(net, of=few, projection="none")
    betas = torch.linspace(scheduler_config["beta_start"], scheduler_config["beta_end"], 1000)
    if scheduler_config["beta_schedule"] != "linear":
        pytest.fail("the formula below is for linear betas")
    signal = (1 - betas).cumprod(0)
    scalars = {
        "mean": torch.mean,
        "square": lambda f: f.square().mean(),
        "l1": lambda f: f.abs().mean(),
    }
    for i in range(len(few)):
        clean = torch.from_numpy(few.pixels[i]).permute(2, 0, 1)[None] / 127.5 - 1
        gradients: dict[str, list[torch.Tensor]] = {
            name: [] for name in (*scalars, "loss", "probe")
        }
        errors = []
        for t in (0, 500):
            noise = gaussian_noise(3, "train", few.ids[i : i + 1], t, (1, 8, 8))
            (probe,) = random_signs(3, "train", few.ids[i : i + 1], t, (1, 8, 8))
            prediction = net(signal[t].sqrt() * clean + (1 - signal[t]).sqrt() * noise, t).sample
            loss = (prediction - noise).square().mean()
            errors.append(loss.sqrt().item())
            values = {name: read(prediction) for name, read in scalars.items()}
            values |= {"loss": loss, "probe": (probe * prediction).sum()}
            for name, value in values.items():
                each = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
                gradients[name].append(torch.cat([gradient.flatten() for gradient in each]))
        expected = {name: torch.stack(rows) for name, rows in gradients.items()}
        for name in (*scalars, "loss"):
            unit = expected[name] / (expected[name].norm(dim=1, keepdim=True) + 1e-8)
            for key, wanted in (
                (name, expected[name].mean(0)),
                (f"{name}/normalised", unit.mean(0)),
            ):
                np.testing.assert_allclose(
                    found.features[key][i],
                    wanted,
                    rtol=1e-3,
                    atol=1e-5 * wanted.abs().max(),
                    err_msg=key,
                )
        np.testing.assert_allclose(
            found.rows[i], expected["probe"], rtol=1e-3, atol=1e-5 * expected["probe"].abs().max()
        )
        assert found.residual[i] == pytest.approx(
            np.mean(errors / np.linalg.norm(errors)), rel=1e-5
        )
    assert set(found.features) == {
        name + end for name in (*scalars, "loss") for end in ("", "/normalised")
    }
    assert all(values.dtype == np.float32 for values in arrays(found).values())


@pytest.mark.parametrize("projection", ["countsketch", "kronecker"])
def test_the_batch_size_changes_nothing_but_rounding(projection, tiny_net, features):
    """DAS known answer 11, at batch sizes 1, 7 and 16 of 17 images."""
    net = tiny_net()
    one, seven, sixteen = (
        features(net, projection=projection, dimension=64, batch_size=size) for size in (1, 7, 16)
    )
    close(one, sixteen)
    close(seven, sixteen)


def test_an_image_has_the_same_features_wherever_it_stands(tiny_net, features, images):
    net, order = tiny_net("conditional"), np.array([4, 16, 0])
    close(features(net, of=images.take(order)), features(net), order)


@pytest.mark.parametrize("projection", ["gaussian", "srht"])
def test_every_projection_comes_near_the_exact_kernel(projection, tiny_net, features):
    """Within five standard deviations of a dense Gaussian projection, which are at most |a| |b|
    sqrt(2 / k)."""
    net = tiny_net()
    exact = features(net, ["loss"], projection="none").features["loss"]
    found = features(net, ["loss"], projection=projection, dimension=512).features["loss"]
    assert found.shape == (17, 512)
    length = np.linalg.norm(exact, axis=1)
    assert (
        np.abs(found @ found.T - exact @ exact.T) < 5 * np.outer(length, length) * np.sqrt(2 / 512)
    ).all()


def test_readouts_share_one_forward_pass(tiny_net, features):
    net, calls = tiny_net(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    alone = features(net, ["loss"])
    assert len(calls) == 3 * 2  # batches of 7 of 17 images, timesteps
    assert alone.rows.shape == (17, 0, 32)
    together = features(net)
    assert len(calls) == 2 * 3 * 2
    np.testing.assert_allclose(
        alone.features["loss"], together.features["loss"], rtol=1e-4, atol=1e-6
    )


def test_seed_and_part_choose_the_noise_and_the_seed_the_projection(tiny_net, features):
    net = tiny_net()
    first = features(net, ["loss"])
    assert np.array_equal(first.features["loss"], features(net, ["loss"]).features["loss"])
    assert not np.allclose(first.residual, features(net, ["loss"], part="holdout").residual)
    assert not np.allclose(first.residual, features(net, ["loss"], seed=4).residual)


def test_a_conditional_network_is_told_the_labels(tiny_net, features, images):
    net = tiny_net("conditional")
    told = (
        features(net, projection="none", parameters=["class_embedding.weight"])
        .features["loss"]
        .reshape(17, 11, -1)
    )
    assert np.array_equal(np.abs(told).sum(2) > 0, images.labels[:, None] == np.arange(11))
    nobody = Images.of(images.pixels)
    with pytest.raises(ArtifactError, match=r"labels must lie in \[0, 10\)"):
        features(net, of=nobody)


def test_dropout_is_off(tiny_net, features):
    net = tiny_net(dropout=0.5)
    wanted = features(net, ["loss"])
    close(features(copy.deepcopy(net).train(), ["loss"]), wanted)


def test_a_subset_of_the_parameters_projects_to_its_share(tiny_net, features):
    """The sketches of two halves of the network add up to that of the whole."""
    net = tiny_net()
    halves = [["up_blocks.*", "conv_*"], ["down_blocks.*", "mid_block.*", "time_*"]]
    one, other = (
        features(net, ["square"], parameters=patterns).features["square"] for patterns in halves
    )
    whole = features(net, ["square"]).features["square"]
    np.testing.assert_allclose(one + other, whole, rtol=1e-3, atol=1e-5 * np.abs(whole).max())


def test_no_images_have_no_features(tiny_net, features, images):
    found = features(tiny_net("conditional"), of=images.take(np.arange(0)))
    assert {
        name: values.shape
        for name, values in arrays(found).items()
        if name in ("loss", "rows", "residual")
    } == {
        "loss": (0, 32),
        "rows": (0, 2, 32),
        "residual": (0,),
    }


def test_half_precision_keeps_the_ranks(tiny_net, features):
    net = tiny_net()
    full, half = (
        features(net, ["mean"], precision=precision).features["mean/normalised"]
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    assert spearmanr((half @ half.T).flatten(), (full @ full.T).flatten()).statistic > 0.99


def test_gradients_that_are_no_number_are_refused(tiny_net, features):
    net = tiny_net()
    torch.nn.init.constant_(net.conv_out.bias, np.nan)
    with pytest.raises(ArtifactError, match="a gradient for the holdout images is NaN or infinite"):
        features(net, part="holdout")


def test_settings_that_do_not_fit_the_network_are_refused(tiny_net, features):
    with pytest.raises(ConfigError, match=r"features.timesteps = 1001"):
        features(tiny_net(), timesteps=1001)
    with pytest.raises(
        ConfigError, match=r"features.parameters: 'nothing' matches no trained parameter"
    ):
        features(tiny_net(), parameters=["nothing"])


def test_with_shared_noise_images_that_are_the_same_have_the_same_features(
    tiny_net, images, features
):
    """Whatever their ids, sets and places; their probes are their own. Other draws have other
    noise."""
    net, rows = tiny_net(), [0, 1, 0]
    few = Images.of(images.pixels[rows], np.array([4, 9, 2]), images.labels[rows])
    own, shared = (features(net, of=few, noise=noise) for noise in ("per_image", "shared"))
    queries = features(net, of=few, part="holdout", noise="shared")
    for name, values in shared.features.items():
        np.testing.assert_allclose(values[0], values[2], rtol=1e-4, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(values, queries.features[name], rtol=1e-4, atol=1e-7)
        assert not np.allclose(values[0], values[1]), name
    assert not np.allclose(own.features["loss"][0], own.features["loss"][2])
    assert not np.allclose(shared.rows[0], shared.rows[2])
    assert not np.allclose(shared.rows, queries.rows)


def test_more_probes_are_more_rows_of_each_timestep(tiny_net, images, features):
    """The first of them stay as they are, and no mean changes."""
    net, few = tiny_net(), images.take(np.arange(3))
    one, three = (features(net, of=few, probes=probes) for probes in (1, 3))
    timesteps = one.rows.shape[1]
    assert three.rows.shape == (3, 3 * timesteps, one.rows.shape[2])
    by_probe = three.rows.reshape(3, timesteps, 3, -1)
    np.testing.assert_allclose(by_probe[:, :, 0], one.rows, rtol=1e-4, atol=1e-5)
    assert not np.allclose(by_probe[:, :, 1], by_probe[:, :, 2])
    for name, values in three.features.items():
        np.testing.assert_allclose(values, one.features[name], rtol=1e-4, atol=1e-7)
