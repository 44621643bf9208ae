"""SISS: importance weights, the two ends of the mixture, and that the difference is the loss without
the forgotten images."""

import numpy as np
import pytest
import torch

from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch
from afterimage.methods import siss
from afterimage.methods.siss import Pairs, mixed
from afterimage.methods.unlearning import gradients
from afterimage.training.learner import Learner, plain

ARM = {"method": "siss", "superfactor": 0.0}
FAR, NEAR = 50.0, 0.6


def sides(count: int, distance: float, sigma: float, seed: int = 0) -> list[Batch]:
    """Noisy images, (count, 1, 2, 1), of two images at a distance, with the same noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, 1, 2, 1), generator=generator)
    root, rows = (1 - sigma**2) ** 0.5, torch.arange(count)
    images = (torch.tensor([0.3, -0.2]), torch.tensor([0.3 + distance, -0.2]))
    return [
        Batch(rows, root * image[None, None, :, None] + sigma * noise, rows * 0, noise, {})
        for image in images
    ]


def coins(count: int, mixture: float) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(9)) < mixture


def mixture_of(count: int, distance: float, mixture: float, sigma: float = 0.7):
    both = sides(count, distance, sigma)
    chosen = coins(count, mixture)
    return both, chosen, mixed(*both, chosen, torch.full((count,), sigma), mixture)


# ---- the weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mixture", [0.2, 0.5, 0.9])
def test_weights_are_the_densities_over_that_of_the_mixture(mixture):
    sigma = 0.7
    both, chosen, (kept, forgotten) = mixture_of(50, NEAR, mixture, sigma)
    assert torch.equal(kept.noisy, forgotten.noisy)
    densities = []
    for side in both:
        centre = (side.noisy - sigma * side.target)[0]
        gauss = torch.distributions.Normal(centre.double(), sigma)
        densities.append(gauss.log_prob(kept.noisy.double()).sum(dim=(1, 2, 3)).exp())
    whole = (1 - mixture) * densities[0] + mixture * densities[1]
    for batch, density in zip((kept, forgotten), densities, strict=True):
        torch.testing.assert_close(batch.weights, (density / whole).float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(kept.noisy[chosen], both[1].noisy[chosen])
    assert torch.equal(kept.noisy[~chosen], both[0].noisy[~chosen])


@pytest.mark.parametrize("mixture", [0.0, 0.3, 0.5, 1.0])
def test_mean_weights_are_one(mixture):
    _, _, batches = mixture_of(200_000, NEAR, mixture)
    for batch in batches:
        weights = batch.weights.double()
        deviation = float(weights.std()) / len(weights) ** 0.5
        assert float(weights.mean()) == pytest.approx(1, abs=4.5 * deviation + 1e-6)


@pytest.mark.parametrize("mixture", [0.3, 0.5, 0.7])
def test_weighted_losses_are_unbiased(mixture):
    """Of a prediction that depends on the noisy image, against the two plain losses."""

    def error(batch: Batch) -> torch.Tensor:
        prediction = 0.4 * batch.noisy.double() ** 2 - 0.3
        return (prediction - batch.target.double()).square().mean(dim=(1, 2, 3))

    both, _, batches = mixture_of(400_000, NEAR, mixture)
    for side, batch in zip(both, batches, strict=True):
        plain_loss, terms = error(side), batch.weights.double() * error(batch)
        deviation = float((plain_loss.var() + terms.var()) / len(terms)) ** 0.5
        assert float(terms.mean()) == pytest.approx(float(plain_loss.mean()), abs=4.5 * deviation)
    # The weights are what makes them so.
    assert abs(float(error(batches[1]).mean() - error(both[1]).mean())) > 20 * deviation


@pytest.mark.parametrize(("mixture", "side"), [(0.0, 0), (1.0, 1)])
def test_at_its_ends_the_mixture_has_the_plain_loss_of_one_side_and_none_of_the_other(
    mixture, side
):
    both, _, batches = mixture_of(64, FAR, mixture)
    own, other = batches[side], batches[1 - side]
    for name in ("noisy", "target"):
        assert torch.equal(getattr(own, name), getattr(both[side], name))
    assert torch.equal(own.weights, torch.ones(64))
    assert torch.equal(other.weights, torch.zeros(64))


@pytest.mark.parametrize("mixture", [0.25, 0.5])
def test_a_noisy_image_under_one_condition_is_not_one_of_another(mixture):
    kept, forgotten = sides(400, NEAR, 0.7)
    labels = torch.arange(400) % 3
    kept.condition["class_labels"] = labels
    forgotten.condition["class_labels"] = torch.zeros(400, dtype=torch.int64)
    chosen = coins(400, mixture)
    pair = mixed(kept, forgotten, chosen, torch.full((400,), 0.7), mixture)
    differ = labels != 0
    for batch, mask, weight in (
        (pair[0], differ & ~chosen, 1 / (1 - mixture)),
        (pair[1], differ & chosen, 1 / mixture),
    ):
        torch.testing.assert_close(batch.weights[mask], torch.full((int(mask.sum()),), weight))
    assert not pair[0].weights[differ & chosen].any()
    assert not pair[1].weights[differ & ~chosen].any()
    assert torch.equal(
        pair[0].condition["class_labels"], torch.where(chosen, torch.zeros_like(labels), labels)
    )
    assert ((pair[0].weights > 0) & (pair[1].weights > 0))[~differ].all()


# ---- a run's pairs -------------------------------------------------------------------------------


def test_pairs_share_timesteps_noise_and_dropped_labels(unlearner, tmp_path):
    job = unlearner(tmp_path, ARM, label_dropout=0.5, batch_size=32)
    pairs = Pairs(job)
    kept, forgotten = pairs.batches(2)
    assert torch.equal(kept.timesteps, forgotten.timesteps)
    assert job.forgotten[forgotten.rows].all()
    assert job.forgotten[kept.rows].any() or not job.forgotten[kept.rows].all()
    sigma = pairs.sigma[kept.timesteps][:, None, None, None]
    root = (1 - sigma**2).sqrt()
    for batch in (kept, forgotten):
        clean = job.task.clean(batch.rows, torch.zeros(32, dtype=torch.bool))
        torch.testing.assert_close(
            root * clean + sigma * batch.target, batch.noisy, rtol=1e-3, atol=1e-4
        )
    dropped = kept.condition["class_labels"] == 10
    assert 4 < dropped.sum() < 28


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_targets_are_what_the_network_predicts_of_the_noisy_image(kind, unlearner, tmp_path):
    """Of the kept image in one term and of the forgotten one in the other, whichever was made
    noisy."""
    made = []
    for prediction in ("epsilon", kind):
        job = unlearner(tmp_path, ARM, "none", batch_size=32)
        job.scheduler.register_to_config(prediction_type=prediction)
        made.append(Pairs(job).batches(2))
    sigma = Pairs(job).sigma[made[0][0].timesteps][:, None, None, None]
    root = (1 - sigma**2).sqrt()
    for noise, own in zip(*made, strict=True):
        torch.testing.assert_close(own.weights, noise.weights, rtol=2e-3, atol=1e-4)
        assert torch.equal(own.noisy, noise.noisy)
        clean = job.task.clean(own.rows, torch.zeros(32, dtype=torch.bool))
        expected = clean if kind == "sample" else root * noise.target - sigma * clean
        torch.testing.assert_close(own.target, expected, rtol=1e-3, atol=1e-3)
    assert ((made[1][0].weights > 0.01) & (made[1][0].weights < 1.9)).any()


@pytest.mark.parametrize(
    ("images", "superfactor", "factors"),
    [("all", 0.0, (1.25, 0.25)), ("all", 1.0, (1.25, 0.5)), ("remain", 1.0, (1.0, 0.25))],
)
def test_factors_are_those_of_the_paper(images, superfactor, factors, unlearner, tmp_path):
    """n = 40 images, of which k = 8 are forgotten."""
    arm = ARM | {"images": images, "superfactor": superfactor}
    pairs = Pairs(unlearner(tmp_path, arm, forgotten=np.arange(40) % 5 == 0))
    assert pairs.factors == pytest.approx(factors)
    rows = np.concatenate([pairs.batches(s)[0].rows.numpy() for s in range(40)])
    assert set(rows) == {row for row in range(40) if images == "all" or row % 5}


def test_gradient_is_the_difference_of_the_two_terms(unlearner, tmp_path, series):
    arm = ARM | {"superfactor": 0.5}
    job = unlearner(tmp_path / "state", arm, updates=1, clip=None, log_every=1, accumulation=2)
    other = unlearner(tmp_path / "other", arm)
    load_weights(other.net, job.base)
    pairs = Pairs(other)
    kept, forgotten = pairs.batches(0)
    terms = [
        (other.task.losses(other.net, batch) * batch.weights).mean() for batch in (kept, forgotten)
    ]
    count = int(job.forgotten.sum())
    share = count / (40 - count)
    ((1 + share) * terms[0] - 1.5 * share * terms[1]).backward()
    siss.train(job)
    for a, b in zip(other.net.parameters(), job.net.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    found = series(job.store.curves)
    assert found["loss"] == pytest.approx([terms[0].item()], rel=1e-4)
    assert found["forget_loss"] == pytest.approx([terms[1].item()], rel=1e-4)


def test_norm_of_the_subtracted_gradient_is_a_share_of_the_other(unlearner, tmp_path, series):
    arm = {"method": "siss", "norm_ratio": 0.1}
    train = {"updates": 1, "clip": None, "log_every": 1, "batch_size": 16}
    job = unlearner(tmp_path / "state", arm, **train)
    other = unlearner(tmp_path / "other", arm, **train)
    load_weights(other.net, job.base)
    learner, found = Learner(other.net, other.train, other.accelerator), []
    for batch in Pairs(other).batches(0):
        learner.gradient(batch, siss.weighted(other.task))
        found.append(torch.cat([gradient.flatten() for gradient in gradients(learner.net)]))
    count = int(job.forgotten.sum())
    pulled = (1 + count / (40 - count)) * found[0]
    siss.train(job)
    whole = torch.cat([weight.grad.flatten() for weight in job.net.parameters()])
    subtracted = pulled - whole
    assert subtracted.norm() == pytest.approx(0.1 * float(pulled.norm()), rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(subtracted, found[1], dim=0)
    assert cosine == pytest.approx(1, abs=1e-4)
    factor = series(job.store.curves)["forget_factor"][0]
    assert factor == pytest.approx(float(0.1 * pulled.norm() / found[1].norm()), rel=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_without_a_push_it_is_plain_training_on_what_remains(kind, unlearner, tmp_path):
    """With lambda = 0 and s = 0: the gradients of the batches, though drawn as pairs."""
    arm = ARM | {"images": "remain", "mixture": 0.0}
    job = unlearner(tmp_path / "state", arm, condition="none", updates=1, clip=None)
    other = unlearner(tmp_path / "other", arm, condition="none")
    for each in (job, other):
        each.scheduler.register_to_config(prediction_type=kind)
    load_weights(other.net, job.base)
    pairs = Pairs(other)
    rows = pairs.sides.rows["remain"][pairs.sides.orders["remain"].rows(0)]
    generator = siss.seeds.torch_rng(job.seed, *job.path, "pair", 0)
    learner = Learner(other.net, other.train, other.accelerator)
    learner.gradient(other.task.batch(rows, generator), plain(other.task))
    siss.train(job)
    for a, b in zip(other.net.parameters(), job.net.parameters(), strict=True):
        # Targets of other kinds are computed back from the noise.
        exact = kind == "epsilon"
        torch.testing.assert_close(
            b.grad, a.grad, rtol=1e-5 if exact else 1e-4, atol=1e-7 if exact else 1e-6
        )


# ---- whole runs ----------------------------------------------------------------------------------


def test_a_single_image_is_forgotten_with_its_copies(unlearner, tmp_path):
    arm = {"method": "siss", "norm_ratio": 0.1}
    for condition in ("none", "label", "text"):
        job = unlearner(tmp_path / condition, arm, condition, forgotten=np.arange(40) == 7)
        result = siss.train(job)
        assert (result.spent.updates, result.spent.backward_passes) == (7, 14)
        assert result.spent.images_seen == 7 * 2 * 4


def test_stopped_after_any_update_it_ends_with_the_same_bits(
    unlearner, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return unlearner(tmp_path / folder, ARM, dropout=0.2, updates=4)

    same_bits_after_stops(siss.train, job, range(1, 3))


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    arm = {"method": "siss", "norm_ratio": 0.1}
    job = unlearner(tmp_path, arm, updates=10, batch_size=8, log_every=1, learning_rate=1e-4)
    siss.train(job)
    names = ("loss", "forget_loss", "forget_factor")
    golden("siss", {name: series(job.store.curves)[name] for name in names}, rel=1e-4)
