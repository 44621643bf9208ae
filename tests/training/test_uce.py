"""UCE: the edited projections minimise the objective, and nothing else is edited."""

import numpy as np
import pytest
import torch

from afterimage.diffusion.model import load_weights
from afterimage.methods import uce
from afterimage.methods.uce import captions, edit

ARM = {"method": "uce"}


@pytest.fixture
def embeddings():
    """Forgotten, surrogates and kept, of 6 values."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn((count, 6), generator=generator).double() for count in (4, 4, 9)]


@pytest.fixture
def weight():
    return torch.randn((5, 6), generator=torch.Generator().manual_seed(4)).double()


def objective(new, old, c, star, p, erase, preserve, ridge):
    return (
        erase * (c @ new.T - star @ old.T).square().sum()
        + preserve * (p @ new.T - p @ old.T).square().sum()
        + ridge * (new - old).square().sum()
    )


@pytest.mark.parametrize("settings", [(1.0, 1.0, 0.5), (2.0, 0.1, 0.01), (1.0, 0.0, 3.0)])
def test_edited_projection_minimises_the_objective(settings, embeddings, weight):
    """Its gradient is zero, and numpy's least squares come to the same."""
    erase, preserve, ridge = settings
    c, star, p = embeddings
    new = (weight @ edit(c, star, p, *settings)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(new, weight, *embeddings, *settings), new)
    assert gradient.abs().max() < 1e-9
    rows = torch.cat([erase**0.5 * c, preserve**0.5 * p, ridge**0.5 * torch.eye(6).double()])
    aims = torch.cat(
        [erase**0.5 * star @ weight.T, preserve**0.5 * p @ weight.T, ridge**0.5 * weight.T]
    )
    found = np.linalg.lstsq(rows.numpy(), aims.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(new.detach().numpy(), found, atol=1e-10)


def test_a_surrogate_that_is_the_caption_changes_nothing(embeddings):
    c, _, p = embeddings
    assert torch.equal(edit(c, c, p, 1.0, 1.0, 0.5), torch.eye(6).double())


def test_kept_directions_orthogonal_to_the_forgotten_stay(embeddings, weight):
    """Exactly, whatever their weight; a forgotten one comes to its surrogate as the ridge goes to
    0."""
    c, star, p = (rows.clone() for rows in embeddings)
    c, star = c[:2], star[:2]
    c[:, 3:], p[:, :3] = 0, 0
    new = weight @ edit(c, star, p, 1.0, 0.3, 1e-9)
    torch.testing.assert_close(p @ new.T, p @ weight.T)
    torch.testing.assert_close(c @ new.T, star @ weight.T, rtol=1e-5, atol=1e-6)
    assert (c @ (new - weight).T).abs().max() > 0.1


def test_captions_of_forgotten_images_are_forgotten_and_those_of_others_alone_kept(
    unlearner, tmp_path, digits
):
    forgotten = np.arange(40) == 7  # one image: others have its caption, too
    job = unlearner(tmp_path, ARM, "text", forgotten=forgotten)
    texts, labels = job.task.texts[0], digits[1][:40]
    gone, rest = captions(job)
    assert torch.equal(gone, texts.embeddings[[labels[7]]])
    assert torch.equal(rest, texts.embeddings[[digit for digit in range(10) if digit != labels[7]]])


@pytest.mark.parametrize("surrogate", ["digit", None])
def test_all_projections_of_cross_attention_are_edited_and_nothing_else(
    surrogate, unlearner, tmp_path, series
):
    job = unlearner(tmp_path / "state", ARM, "text", surrogate=surrogate)
    base = unlearner(tmp_path / "other", ARM, "text").net
    load_weights(base, job.base)
    result = uce.train(job)
    texts, start = job.task.texts[0], base.state_dict()
    star = texts.embedding(surrogate)
    zero, rest = texts.embedding("zero"), texts.embeddings[1:10].flatten(0, 1)
    edited = set()
    for net in (result.raw, result.average):
        for name, value in net.state_dict().items():
            if torch.equal(value, start[name]):
                continue
            edited.add(name)
            new, old = value.double().requires_grad_(), start[name].double()
            args = [part.double() for part in (zero, star, rest)]
            (gradient,) = torch.autograd.grad(objective(new, old, *args, 1.0, 1.0, 0.5), new)
            assert gradient.abs().max() < 1e-3 * float(old.abs().max() * zero.square().sum())
    assert edited == {name for name in start if "attn2.to_k" in name or "attn2.to_v" in name}
    assert edited
    (left,) = series(job.store.curves)["loss"]
    assert 0 < left < 1
    assert (result.spent.updates, result.spent.backward_passes, result.spent.images_seen) == (
        1,
        0,
        0,
    )
    assert (result.facts["forgotten_captions"], result.facts["kept_captions"]) == (1, 9)


def test_a_surrogate_that_is_the_caption_leaves_the_network(unlearner, tmp_path):
    job = unlearner(tmp_path / "state", ARM, "text", surrogate="zero")
    base = unlearner(tmp_path / "other", ARM, "text").net
    load_weights(base, job.base)
    result = uce.train(job)
    pairs = zip(base.parameters(), result.average.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    job = unlearner(tmp_path, ARM, "text", surrogate="digit")
    uce.train(job)
    golden("uce", {"loss": series(job.store.curves)["loss"]}, rel=1e-4)
