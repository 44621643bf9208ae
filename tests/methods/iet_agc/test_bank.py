"""The loss bank and its skip rule (``methods.agc``)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afterimage.methods.iet_agc.bank import Bank

BATCHES = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 8, width=32)), min_size=1, max_size=12)


def bank_of(level: float, threshold: float = 0.5, timesteps: int = 5, **settings) -> Bank:
    bank = Bank(timesteps, 0.8, threshold, **settings)
    bank.level.fill_(level)
    return bank


def columns(batch) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([t for t, _ in batch]), torch.tensor(
        [loss for _, loss in batch], dtype=torch.float32
    )


def test_bank_rises_from_zero_without_bias_correction():
    """IET-AGC known answer 1: decay 0.8 and a constant loss of 1 give 1 - 0.8^n."""
    bank, levels = Bank(3, 0.8, 0.5), []
    for _ in range(10):
        bank.update(torch.tensor([1]), torch.tensor([1.0]))
        levels.append(bank.level[1].item())
    assert levels[:5] == pytest.approx([0.2, 0.36, 0.488, 0.5904, 0.67232], rel=1e-6)
    assert levels[9] == pytest.approx(0.892626, abs=5e-7)
    assert bank.level[[0, 2]].eq(0).all()


def test_mask_and_mean_of_the_kept():
    """IET-AGC known answer 2, and invariant 5: a loss at the limit is kept."""
    losses = torch.tensor([0.49, 0.5, 0.51, 2.0])
    kept = bank_of(1.0).kept(torch.tensor([0, 1, 2, 3]), losses)
    assert kept.tolist() == [False, True, True, True]
    assert losses[kept].mean().item() == pytest.approx(3.01 / 3)


def test_samples_of_one_timestep_are_all_judged_by_the_old_bank_and_then_taken_in():
    """IET-AGC known answer 3."""
    bank, timesteps, losses = bank_of(1.0), torch.tensor([2, 2]), torch.tensor([0.0, 0.0])
    assert not bank.kept(timesteps, losses).any()
    bank.update(timesteps, losses)
    assert bank.level.tolist() == pytest.approx([1, 1, 0.64, 1, 1])


@given(batch=BATCHES, start=st.floats(0, 4, width=32))
def test_update_has_the_bits_of_a_loop_over_the_batch(batch, start):
    bank = bank_of(start)
    expected = bank.level.clone()
    for t, loss in zip(*columns(batch), strict=True):
        expected[t] = 0.8 * expected[t] + (1 - 0.8) * loss
    bank.update(*columns(batch))
    assert torch.equal(bank.level, expected)


@given(batch=BATCHES, threshold=st.floats(0, 1e9))
def test_a_fresh_bank_keeps_everything(batch, threshold):
    """IET-AGC invariant 4."""
    assert Bank(5, 0.8, threshold).kept(*columns(batch)).all()


@given(batch=BATCHES, level=st.floats(0, 1e6))
def test_threshold_zero_keeps_everything_whatever_the_bank(batch, level):
    """IET-AGC invariant 2."""
    assert bank_of(level, threshold=0).kept(*columns(batch)).all()


@given(level=st.floats(0, 4, width=32), threshold=st.floats(0, 2))
def test_ties_are_kept(level, threshold):
    """IET-AGC invariant 5: l = lambda b."""
    bank, t = bank_of(level, threshold), torch.tensor([0])
    tie = bank.limits(t)
    assert bank.kept(t, tie).all()
    below = torch.nextafter(tie, torch.tensor(-1.0))
    assert not bank.kept(t, below).any()


@given(losses=st.permutations([0.1, 0.4, 0.6, 2.0]))
def test_order_of_distinct_timesteps_does_not_matter(losses):
    """IET-AGC invariant 7."""
    home = {0.1: 3, 0.4: 0, 0.6: 2, 2.0: 1}
    bank = bank_of(1.0)
    timesteps, values = torch.tensor([home[loss] for loss in losses]), torch.tensor(losses)
    assert bank.kept(timesteps, values).tolist() == [loss >= 0.5 for loss in losses]
    bank.update(timesteps, values)
    assert bank.level.tolist() == pytest.approx([0.88, 1.2, 0.92, 0.82, 1.0])


def test_order_within_a_timestep_matters_to_the_bank_alone():
    """IET-AGC invariant 7, second half."""
    t, losses = torch.tensor([0, 0]), torch.tensor([0.0, 2.0])
    one, other = bank_of(1.0), bank_of(1.0)
    assert one.kept(t, losses).tolist() == other.kept(t, losses.flip(0)).flip(0).tolist()
    one.update(t, losses)
    other.update(t, losses.flip(0))
    assert (one.level[0].item(), other.level[0].item()) == pytest.approx((1.04, 0.96))


def test_nothing_is_skipped_from_skip_t_max_on():
    bank = bank_of(1.0, skip_t_max=2)
    assert bank.kept(torch.arange(5), torch.zeros(5)).tolist() == [False, False, True, True, True]


def test_losses_of_low_spread_are_hardly_ever_skipped():
    """IET-AGC statistical check: lambda 0.5 and independent log-normal losses of spread 0.15."""
    generator = torch.Generator().manual_seed(0)
    bank, skipped, seen = Bank(20, 0.8, 0.5), 0, 0
    for _ in range(200):
        timesteps = torch.randint(20, (64,), generator=generator)
        losses = torch.exp(0.15 * torch.randn(64, generator=generator))
        skipped += int((~bank.kept(timesteps, losses)).sum())
        seen += 64
        bank.update(timesteps, losses)
    assert bank.level.min() > 0.7
    assert skipped / seen < 1e-3
