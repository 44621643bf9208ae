"""Remedies at inference: closed forms of what they change, and that they change nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from afterimage import artifacts, seeds
from afterimage.config import Amg, ConfigError, Dcr, Diffusion, Sample, Wen
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.prediction import clean_image
from afterimage.diffusion.prompts import Prompts
from afterimage.diffusion.remedy import Drawing, Files
from afterimage.diffusion.sample import denoise
from afterimage.diffusion.texts import TEXT, Texts
from afterimage.images import Images
from afterimage.methods import amg, dcr, wen

KINDS = ("epsilon", "v_prediction", "sample")
SHAPE = (1, 2, 2)
RANDOM = torch.Generator().manual_seed(5)
NOTHING = torch.zeros((3, 4))
WORD = torch.randn((2, 3, 4), generator=RANDOM)
"""Embeddings of two captions."""
TEXTS = Texts({"one": 0, "two": 1}, WORD, NOTHING)


class Linear(nn.Module):
    """A network that predicts a multiple of the noisy image plus a sum over the text."""

    def __init__(self, slope: float = 0.3, text: float = 0.1) -> None:
        super().__init__()
        self.slope, self.text = slope, text
        self.weight = nn.Parameter(torch.ones(()))  # as of a network, with a gradient

    def forward(self, x, t, return_dict=False, encoder_hidden_states=None):
        prediction = self.weight * self.slope * x
        if encoder_hidden_states is not None:
            prediction = prediction + self.text * encoder_hidden_states.sum((1, 2)).view(
                -1, 1, 1, 1
            )
        return (prediction,)


def drawing(tmp_path, pixels=None, texts=None, captions=("one", "two"), **scheduler) -> Drawing:
    """What a remedy is told, with training images, uint8 (N, H, W, C), on disk."""
    files = Files()
    if pixels is not None:
        named = ["one", "two"] * len(pixels)
        train = Images.of(pixels, np.arange(len(pixels)), captions=np.array(named[: len(pixels)]))
        with artifacts.step({}, tmp_path / "store", {}, ("afterimage.seeds",)) as step:
            train.save(step.folder / "train.npz")
            members = pd.DataFrame({"id": train.ids, "trained": True})
            members.to_parquet(step.folder / "members.parquet")
        files = Files(
            train=tmp_path / "store/train.npz", members=[tmp_path / "store/members.parquet"]
        )
    prompts = None if texts is None else Prompts(np.array(captions), texts)
    made = build_scheduler(Diffusion.model_validate(scheduler))
    return Drawing(1, 0, False, dict(made.config) | {"clip_sample": False}, prompts, files)


@pytest.fixture
def pair():
    """Two training images of one value each, 0 and 255, which networks see as -1 and 1."""
    return np.stack([np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)])


def guided(net, texts=None, scale=1.0, count=1) -> Guided:
    if texts is None:
        return Guided(net, {}, {}, scale)
    null = NOTHING.expand(count, *NOTHING.shape)
    return Guided(net, {TEXT: texts}, {TEXT: null}, scale)


# ---- AMG -----------------------------------------------------------------------------------------


def amg_arm(**keys) -> Amg:
    return Amg(method="amg", base="b", **{"neighbours": 2, "threshold": (0.0, 0.0)} | keys)


@pytest.mark.parametrize("kind", KINDS)
def test_amg_adds_the_gradient_of_the_similarity_to_the_noise(kind, tmp_path, pair):
    """With a linear network the image is k x; between images at -1 and 1, all its pixels equal, the
    distances are |k x + 1| and |k x - 1| times 2, and sigma = 1 - 2 (1 - k x) / 2 = k x."""
    own = drawing(tmp_path, pair, prediction=kind)
    remedy = amg.remedy(amg_arm(dissimilarity=0.25), own)
    t, net = torch.tensor(300), Linear()
    kept = build_scheduler(Diffusion(prediction=kind)).alphas_cumprod[300]
    x = torch.full((1, *SHAPE), 0.4)
    with torch.inference_mode():
        plain = guided(net)(x, t)
        changed = remedy.prediction(guided(net), x, t)
    image = clean_image(x, plain, float(kept) ** 0.5, kind)
    assert 0 < image[0, 0, 0, 0] < 1
    # d sigma / d x of one pixel is a quarter of k, for there are four.
    slope = float(image[0, 0, 0, 0] / 0.4) / 4
    noise_before, noise_after = (
        (x - kept**0.5 * clean_image(x, each, float(kept) ** 0.5, kind)) / (1 - kept) ** 0.5
        for each in (plain, changed)
    )
    expected = torch.full_like(x, 0.25 * float(1 - kept) ** 0.5 * 4 * slope)
    torch.testing.assert_close(noise_after - noise_before, expected, rtol=1e-3, atol=1e-5)
    assert remedy.counts == {"steps_guided": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_amg_makes_the_next_image_less_like_the_nearest(kind, tmp_path, pair):
    own = drawing(tmp_path, pair, prediction=kind)
    remedy = amg.remedy(amg_arm(dissimilarity=0.1), own)
    t, x = torch.tensor(200), 0.4 + 0.1 * torch.randn((3, *SHAPE), generator=RANDOM)
    kept = float(build_scheduler(Diffusion()).alphas_cumprod[200])
    before, after = (
        remedy._images.similarity(clean_image(x, each, kept**0.5, kind))[0]
        for each in (guided(Linear())(x, t), remedy.prediction(guided(Linear()), x, t))
    )
    assert (after < before).all()


def test_amg_leaves_what_is_not_similar_as_it_is(tmp_path, pair):
    """Of two images one is above the threshold; the other's prediction keeps its bits."""
    remedy = amg.remedy(amg_arm(threshold=(0.5, 0.5)), drawing(tmp_path, pair))
    t, x = torch.tensor(0), torch.stack([torch.full(SHAPE, 0.9), torch.full(SHAPE, 0.1)])
    plain = guided(Linear(0.0))(x, t)
    changed = remedy.prediction(guided(Linear(0.0)), x, t)
    assert not torch.equal(changed[0], plain[0])
    assert torch.equal(changed[1], plain[1])
    assert remedy.counts == {"steps_guided": 1}


def test_the_threshold_is_a_parabola_between_noise_and_image(tmp_path, pair):
    """sigma of an image x in (0, 1) is x: it is guided from low + (high - low) alpha_bar^2 on."""
    remedy = amg.remedy(amg_arm(threshold=(0.2, 0.8)), drawing(tmp_path, pair, prediction="sample"))
    kept = build_scheduler(Diffusion()).alphas_cumprod
    for t in (0, 150, 400, 999):
        level = 0.2 + 0.6 * float(kept[t]) ** 2
        for value, expected in ((level - 0.01, 0), (level + 0.01, 1)):
            remedy.counts.clear()
            # The network returns x, and predicts the image.
            remedy.prediction(guided(Linear(1.0)), torch.full((1, *SHAPE), value), torch.tensor(t))
            assert remedy.counts.get("steps_guided", 0) == expected, (t, value)


def test_amg_guides_less_by_the_prompt_and_away_from_the_nearest_caption(tmp_path, pair):
    own = drawing(tmp_path, pair, TEXTS)
    net, t, x = Linear(0.0), torch.tensor(0), torch.full((1, *SHAPE), 0.9)
    asked = guided(net, WORD[:1], 4.0)
    kept = float(build_scheduler(Diffusion()).alphas_cumprod[0])
    image = clean_image(x, asked(x, t), kept**0.5, "epsilon")
    sigma = float(amg.remedy(amg_arm(), own)._images.similarity(image)[0])
    conditional, unconditional = asked.branches(x, t)
    other = net(x, t, encoder_hidden_states=WORD[1:])[0]  # the caption of the image at 1
    for c1, c2 in ((1.0, 0.0), (1.0, 2.0), (2.0, 10.0), (100.0, 5.0)):
        s1 = min(c1 * sigma, 3.0)
        s2 = min(c2 * sigma, 3.0 - s1)
        arm = amg_arm(dissimilarity=0.0, despecification=c1, deduplication=c2)
        changed = amg.remedy(arm, own).prediction(asked, x, t)
        expected = (
            unconditional + (4 - s1) * (conditional - unconditional) - s2 * (other - unconditional)
        )
        torch.testing.assert_close(changed, expected)


def test_equal_training_images_count_once(tmp_path, pair):
    """Else three copies of the nearest image would hide it: their mean distance is its own."""
    copies = np.concatenate([pair[:1]] * 3 + [pair[1:]])
    one, many = (amg.TrainingImages.of(drawing(tmp_path, pixels), 2) for pixels in (pair, copies))
    x = torch.full((1, *SHAPE), -0.5)
    assert one.similarity(x)[0] == many.similarity(x)[0] == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="neighbours = 3 is more than the 2 different images"):
        amg.TrainingImages.of(drawing(tmp_path, copies), 3)


def test_amg_in_a_whole_drawing(tmp_path, pair):
    """A network that knows one training image draws it; guided away, it does not; with a threshold
    that nothing reaches, the bits are those without the remedy."""

    class Single(nn.Module):
        def forward(self, x, t, return_dict=False):
            return (torch.full_like(x, 0.8),)  # near 1

    own = drawing(tmp_path, pair, prediction="sample")
    sample = Sample(images=2, steps=20, sampler="ddpm")

    def drawn(**keys):
        generators = [seeds.torch_rng(0, "test", i) for i in range(2)]
        start = torch.stack([torch.randn(SHAPE, generator=each) for each in generators])
        config = own.scheduler_config
        extra = {"remedy": amg.remedy(amg_arm(**keys), own)} if keys else {}
        return denoise(Single(), config, start, generators, sample, **extra)

    plain = drawn()
    assert (plain - 0.8).abs().max() < 0.05
    assert torch.equal(drawn(threshold=(1.0, 1.0)), plain)


def test_what_a_remedy_reads_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match="method amg needs the training images: --train is None"):
        amg.remedy(amg_arm(), drawing(tmp_path))
    with pytest.raises(ConfigError, match="method dcr changes prompts: --texts and --train"):
        dcr.remedy(Dcr(method="dcr", base="b"), drawing(tmp_path))


# ---- Wen -----------------------------------------------------------------------------------------


def wen_arm(**keys) -> Wen:
    return Wen(method="wen", base="b", **{"target": 0.0} | keys)


def optimised(arm, texts, count):
    remedy = wen.remedy(arm, None)
    asked = guided(Linear(), texts, 4.0, count)
    x, t = torch.full((count, *SHAPE), 5.0), torch.tensor(999)
    with torch.inference_mode():
        return remedy, remedy.conditions(asked, x, t).given[TEXT]


def norms(texts):
    """The norm of the difference of the predictions: of four equal pixels."""
    return 2 * 0.1 * texts.sum((1, 2)).abs()


def test_wen_lowers_the_norm_of_the_difference_by_adamw():
    remedy, texts = optimised(wen_arm(updates=3, learning_rate=0.01), WORD, 2)
    assert (norms(texts) < norms(WORD)).all()
    assert remedy.counts == {"prompts_changed": 2}
    # Gradients keep their sign here, so that AdamW moves every number by the learning rate.
    by_hand = WORD.clone()
    sign = torch.sign(WORD.sum((1, 2))).view(-1, 1, 1)
    for _ in range(3):
        by_hand = by_hand * (1 - 0.01 * 0.01)  # weight decay
        by_hand[:, 1:] -= 0.01 * sign
    torch.testing.assert_close(texts, by_hand, rtol=1e-4, atol=1e-5)


def test_wen_stops_at_the_target_for_each_image_alone():
    low, high = sorted(norms(WORD).tolist())
    remedy, texts = optimised(wen_arm(target=(low + high) / 2), WORD, 2)
    kept = int(norms(WORD).argmin())
    assert torch.equal(texts[kept], WORD[kept])
    assert not torch.equal(texts[1 - kept], WORD[1 - kept])
    assert norms(texts)[1 - kept] <= (low + high) / 2
    assert remedy.counts == {"prompts_changed": 1}
    _, alone = optimised(wen_arm(target=(low + high) / 2), WORD[1 - kept :][:1], 1)
    torch.testing.assert_close(alone[0], texts[1 - kept])


# ---- DCR -----------------------------------------------------------------------------------------


PROMPT = "a small red fox jumps over the lazy dog"


class Words:
    """A tokenizer and encoder of words, in the place of CLIP's."""

    all_special_ids = (0,)
    model_max_length = 6

    def __len__(self):
        return 5

    def decode(self, tokens):
        return ["<end>", "alpha", "beta", "gamma", "delta"][tokens[0]]


def changed(change: str, seed: int = 1, added: int = 4) -> list[str]:
    arm = Dcr(method="dcr", base="b", change=change, added=added)
    remedy = object.__new__(dcr.ChangedPrompts)
    remedy._arm, remedy._tokenizer = arm, Words()
    return remedy.changed(PROMPT, np.random.default_rng(seed)).split()


@pytest.mark.parametrize("change", ["words", "numbers", "repeated_words"])
def test_words_are_added_and_the_prompt_stays_in_its_order(change):
    places = set()
    for seed in range(200):
        words = changed(change, seed)
        assert len(words) == len(PROMPT.split()) + 4
        left = iter(words)
        assert all(word in left for word in PROMPT.split()), words
        added = list(words)
        for word in PROMPT.split():
            added.remove(word)
        if change == "words":
            assert set(added) <= {"alpha", "beta", "gamma", "delta"}
        elif change == "numbers":
            assert all(0 <= int(word) < 100_000 for word in added)
        else:
            assert set(added) <= set(PROMPT.split())
        places |= {words.index(word) for word in added if change == "numbers"}
    if change == "numbers":
        assert places == set(range(13)), "before, between and after the words"


def test_noise_has_its_deviation_and_depends_on_the_image_alone(tmp_path):
    arm = Dcr(method="dcr", base="b", change="noise", noise=0.3)
    wide = torch.zeros((2, 50, 40))
    own = drawing(tmp_path, texts=TEXTS)
    both = dcr.remedy(arm, own).embeddings(np.array([3, 4]), wide)
    one = dcr.remedy(arm, own).embeddings(np.array([4]), wide[:1])
    assert torch.equal(both[1], one[0])
    assert not torch.equal(both[0], both[1])
    assert float(both.std()) == pytest.approx(0.3, rel=0.05)
    torch.testing.assert_close(
        dcr.remedy(arm, own).embeddings(np.array([4]), wide[:1] + 7), one + 7
    )
