"""Plain training with weighted images: soft deduplication."""

import dataclasses

import numpy as np
import pytest
import torch

from afterimage.methods import baseline
from afterimage.methods.baseline import inverse_copies, weighted
from afterimage.training.learner import Learner

SOURCES = np.array([7, 7, 7, 7, 2, 2, 9, 1, 3, 4, 5, 6, 8])
SOFT = {"method": "baseline", "weights": "inverse_copies"}


def test_each_source_has_the_same_weight_and_the_mean_is_one():
    weights = inverse_copies(SOURCES)
    sums = [weights[source == SOURCES].sum() for source in np.unique(SOURCES)]
    assert sums == pytest.approx([13 / 9] * 9)
    assert weights.mean() == pytest.approx(1)


def test_gradient_is_that_of_the_weighted_sum(make_job, tmp_path):
    """Against autograd, in one micro-batch and in two: not divided by the batch's own weights."""
    weights = torch.from_numpy(inverse_copies(SOURCES))
    for accumulation in (1, 2):
        job = make_job(tmp_path / str(accumulation), sources=SOURCES, accumulation=accumulation)
        batch = job.task.batch(np.array([0, 1, 4, 6]), torch.Generator().manual_seed(3))
        learner = Learner(job.net, job.train, job.accelerator)
        loss = learner.gradient(batch, weighted(job.task, weights))
        learned = [weight.grad.clone() for weight in job.net.parameters()]
        expected = (job.task.losses(job.net, batch) * weights[batch.rows]).sum() / 4
        gradients = torch.autograd.grad(expected, list(job.net.parameters()))
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for one, other in zip(learned, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_pass_over_all_copies_is_a_pass_over_the_sources(make_job, tmp_path):
    """With the same timesteps and noise for all copies the gradient is that of the deduplicated
    images."""
    job = make_job(tmp_path, batch_size=13, sources=SOURCES, clip=None)
    rows, first = np.arange(13), np.unique(SOURCES, return_index=True)[1]
    job.task.images[:4], job.task.images[4:6] = job.task.images[0], job.task.images[4]

    def batch(of):
        index = torch.from_numpy(of)
        timesteps = 50 * torch.from_numpy(SOURCES)[index]
        noise = torch.stack(
            [
                torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(int(source)))
                for source in SOURCES[of]
            ]
        )
        return job.task.noised(index, timesteps, noise, torch.zeros(len(of), dtype=bool), {})

    weights = torch.from_numpy(inverse_copies(SOURCES))
    learner = Learner(job.net, job.train, job.accelerator)
    loss = learner.gradient(batch(rows), weighted(job.task, weights))
    learned = [weight.grad.clone() for weight in job.net.parameters()]
    alone = learner.gradient(batch(first), baseline.plain(job.task))
    assert loss == pytest.approx(alone, rel=1e-5)
    for one, other in zip(learned, job.net.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("sources", "same"), [(np.arange(13), True), (SOURCES, False)], ids=["distinct", "copies"]
)
def test_without_copies_it_is_plain_training_bit_for_bit(sources, same, make_job, tmp_path):
    plain = baseline.train(make_job(tmp_path / "plain", sources=sources))
    soft = baseline.train(make_job(tmp_path / "soft", arm=SOFT, sources=sources))
    states = zip(
        plain.average.state_dict().values(), soft.average.state_dict().values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in states) == same
    assert dataclasses.asdict(plain.spent) == dataclasses.asdict(soft.spent)
