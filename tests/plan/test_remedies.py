"""Remedies that need more than their keys' ranges: what is refused before any job starts, and what
they cost."""

import pytest

from afterimage import config
from afterimage.plan.cost import work
from afterimage.plan.jobs import STEPS
from afterimage.plan.resolved import resolve

AMBIENT = {"method": "ambient", "level": 300}
ZEROS = {"base": "conditional", "forget": "zeros", "train": {"updates": 200}}
SISS = {"method": "siss", "norm_ratio": 0.1} | ZEROS
ESD = {"method": "esd"} | ZEROS
UCE = {"method": "uce", "base": "text", "forget": "cats"}
AMG = {"method": "amg", "base": "baseline"}


@pytest.fixture
def captioned(digits):
    """Make the study with an arm that reads captions, and one more."""

    def make(arm: dict, **text) -> config.Study:
        plain = {"method": "baseline", "condition": "text", "train": text}
        return digits(
            data__source={"kind": "parquet", "path": "a.parquet", "caption_column": "text"},
            text={},
            arms={"text": plain, "new": arm},
            forget={"cats": {"caption": "cat"}},
            attribution=None,
        )

    return make


def passes(study: config.Study, arm: str) -> float:
    """Return the passes of a batch, a backward pass as two."""
    batch = study.train_of(arm).batch_size * work.forward(study, arm)
    return work.training(study, arm).fp32 / batch


def test_ambient_costs_what_plain_training_does(digits):
    study = digits(arms__ambient=AMBIENT)
    assert work.training(study, "ambient") == work.training(study, "baseline")


def test_siss_makes_two_passes_per_update(digits):
    study = digits(arms__siss=SISS)
    assert work.spent(study, "siss").passes == 400
    assert passes(study, "siss") == pytest.approx(3 * 400)


@pytest.mark.parametrize(
    ("changed", "forward"),
    [
        ({}, 2 + 2 * 24.5),
        ({"guidance": 1.0}, 2 + 24.5),
        ({"inputs": "noised"}, 2),
        ({"steps": 11}, 2 + 2 * 5),
    ],
)
def test_esd_samples_up_to_a_random_step_in_every_update(changed, forward, digits):
    study = digits(arms__esd=ESD | changed)
    assert work.spent(study, "esd").passes == 200
    assert passes(study, "esd") == pytest.approx(200 * (3 + forward))


def test_uce_trains_nothing(captioned):
    study = captioned(UCE)
    assert work.training(study, "new") == work.Work()
    assert resolve(study, "train", "new", 0)["settings"]["arm"]["ridge"] == 0.5


def test_a_remedy_at_inference_trains_nothing_and_draws_longer(captioned, digits):
    study = digits(arms__amg=AMG)
    assert work.training(study, "amg") == work.Work()
    assert work.spent(study, "amg").updates == 0
    drawn = {arm: work.drawing(study, arm, 10).fp32 for arm in ("baseline", "amg")}
    assert drawn["amg"] == pytest.approx(3 * drawn["baseline"]), (
        "forward, and forward and back to the image in every step"
    )
    study = captioned({"method": "wen", "base": "text", "target": 1.0, "updates": 7})
    plain, optimised = (work.drawing(study, arm, 10).fp32 for arm in ("text", "new"))
    assert optimised == pytest.approx(plain * (1 + 2 * 7 / study.sample.steps))


def test_a_remedy_at_inference_is_in_the_settings_of_its_drawing_alone(digits):
    study = digits(arms__amg=AMG)
    plain, amg = (resolve(study, "sample", arm, 0)["settings"] for arm in ("baseline", "amg"))
    assert "remedy" not in plain
    assert amg == plain | {"remedy": amg["remedy"], "mirrors": study.mirrors}
    assert amg["remedy"]["dissimilarity"] == 0.3
    job = STEPS["sample"].job("amg", 0)
    inputs = STEPS["sample"].inputs(study, job)
    assert set(inputs) == {"model", "train", "members"}
    assert "afterimage.methods.amg" in STEPS["sample"].modules(study, job)
    other = STEPS["sample"].job("baseline", 0)
    assert set(STEPS["sample"].inputs(study, other)) == {"model"}
    assert STEPS["sample"].modules(study, other) == ("afterimage.diffusion.sample",)


def test_attacks_read_what_the_arms_on_the_way_were_trained_on(digits):
    tuned = {"method": "baseline", "base": "baseline"}
    study = digits(arms__tuned=tuned, arms__amg=AMG | {"base": "tuned"})
    for step in ("attack/extraction", "attack/membership", "attack/quality", "sample"):
        job = STEPS[step].job("amg", 2)
        assert STEPS[step].inputs(study, job)["members"] == [
            f"train/{arm}/rep2/members.parquet" for arm in ("amg", "tuned", "baseline")
        ]
    job = STEPS["attack/extraction"].job("baseline", 0)
    inputs = STEPS["attack/extraction"].inputs(study, job)
    assert inputs["members"] == ["train/baseline/rep0/members.parquet"]


def test_a_remedy_at_inference_has_its_bases_path(digits):
    study = digits(arms__amg=AMG, paths={"frontier": ["baseline"], "states": 3})
    assert len(study.path_of("baseline")) == 2
    assert study.path_of("amg") == study.states_of("amg") == study.path_of("baseline")
    assert study.frontier_of("amg") == "baseline"
    hidden = digits(arms__amg=AMG, paths={"frontier": ["baseline"], "arms": []})
    assert hidden.path_of("amg") == {}
    job = STEPS["attack/path"].job("amg", 0)
    assert resolve(study, "attack/path", "amg", 0)["settings"]["remedy"]["method"] == "amg"
    assert "afterimage.methods.amg" in STEPS["attack/path"].modules(study, job)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            AMBIENT | {"level": 1000},
            "level = 1000 leaves no timestep above it: allowed are 0 to 999",
        ),
        (AMBIENT | {"level": -1}, "level"),
        ({"method": "ambient"}, "level"),
        (
            AMBIENT | {"dual_fusion": {}},
            "method ambient noises each image once, but dual_fusion makes another one",
        ),
        ({"method": "siss"} | ZEROS, "give exactly one of superfactor and norm_ratio"),
        (SISS | {"superfactor": 1.0}, "give exactly one of superfactor and norm_ratio"),
        (SISS | {"mixture": 1.5}, "mixture"),
        (SISS | {"mixture": 0}, "mixture = 0 draws noisy images with the labels of one side only"),
        (
            {"method": "siss", "superfactor": -0.5, "images": "remain"} | ZEROS,
            "superfactor = -0.5 would learn the forgotten images",
        ),
        (ESD | {"base": "baseline"}, "method esd needs labels or captions, but base = 'baseline'"),
        (
            ESD | {"trainable": "cross_attention"},
            "trainable = 'cross_attention' needs cross-attention, .* the condition is 'label'",
        ),
        (
            ESD | {"steps": 1001},
            "steps = 1001: with diffusion.timesteps = 1000 allowed are 1 to 1000",
        ),
        (
            {"method": "uce", "base": "conditional", "forget": "zeros"},
            "method uce edits cross-attention, .* but the condition is 'label'",
        ),
        (AMG | {"base": "nobody"}, "arms.new.base = 'nobody' is not an arm"),
        (AMG | {"train": {"updates": 5}}, "method amg samples base = 'baseline' as it is: train"),
        (AMG | {"rau_net": {"groups": [1]}}, "as it is: rau_net cannot be given"),
        (AMG | {"data": "deduplicated"}, "give its data = 'planted' and fraction = 1"),
        (AMG | {"despecification": 1.0}, "changes the guidance by captions, but base"),
        (AMG | {"dissimilarity": 0.0}, "are all 0: one must be more"),
        (AMG | {"neighbours": 100_000}, "neighbours = 100000 is more than the .* different"),
        (AMG | {"threshold": [0.5, 1.5]}, "threshold"),
        (
            {"method": "wen", "base": "conditional", "target": 1.0},
            "method wen optimises prompts, .* condition = 'label': allowed is 'text'",
        ),
        (
            {"method": "dcr", "base": "baseline"},
            "method dcr changes prompts, .* condition = 'none': allowed is 'text'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(digits, arm, message):
    with pytest.raises(config.ConfigError, match=message):
        digits(arms__new=arm)


def test_networks_of_a_remedy_at_inference_are_its_bases(digits):
    with pytest.raises(
        config.ConfigError, match=r"base = 'amg' trains nothing .* are those of 'baseline'"
    ):
        digits(arms__amg=AMG, arms__new={"method": "baseline", "base": "amg"})
    matched = {"method": "baseline", "matched_to": {"arm": "amg", "by": "updates"}}
    with pytest.raises(config.ConfigError, match=r"matched_to.arm = 'amg' trains nothing"):
        digits(arms__amg=AMG, arms__new=matched)
    chosen = {"base": "amg", "updates": 5, "switch_timesteps": [5]}
    with pytest.raises(config.ConfigError, match=r"loyal_selection.base = 'amg': it must be one"):
        digits(arms__amg=AMG, loyal_selection=chosen)


def test_single_images_and_unconditional_bases_can_be_forgotten(digits):
    one = SISS | {"base": "baseline", "forget": "one"}
    assert digits(arms__new=one | {"mixture": 0}, forget__one={"ids": [3]}).arms


@pytest.mark.parametrize(
    ("arm", "dropout", "message"),
    [
        (
            {"method": "esd", "base": "text", "forget": "cats"},
            0.0,
            r"esd guides away from a text by the prediction without, .* \(train.label_dropout = 0\)",
        ),
        (UCE, 0.0, "method uce puts the empty caption .* give forget.cats.surrogate"),
        (UCE | {"train": {"updates": 5}}, 0.1, "method uce edits weights once .* train = "),
        (
            UCE | {"matched_to": {"arm": "text", "by": "updates"}},
            0.1,
            "method uce edits weights once .* matched_to cannot be given",
        ),
        (UCE | {"ridge": 0.0}, 0.1, "ridge"),
        (
            {"method": "wen", "base": "text", "target": 1.0},
            0.0,
            r"the prediction without text, which base = 'text' never learned",
        ),
        (
            {"method": "amg", "base": "text", "deduplication": 1.0},
            0.1,
            "deduplication = 1 lowers the guidance by captions, but sample.guidance = 1",
        ),
    ],
)
def test_what_does_not_fit_captions_is_refused(captioned, arm, dropout, message):
    with pytest.raises(config.ConfigError, match=message):
        captioned(arm, label_dropout=dropout)
