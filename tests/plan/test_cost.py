"""What jobs cost: against finished runs, and by how it grows."""

import pytest

from afterimage import config
from afterimage.plan.cost import estimate, measured, memory, work
from afterimage.plan.jobs import STEPS, selection_jobs
from afterimage.plan.jobs import jobs as jobs_of
from afterimage.training.job import budget

# Wall seconds and peak memory (MB) of single jobs of the default study, as Snakemake's benchmark
# files have them: snakemake -c2 on a machine with two cores of an AMD EPYC (AVX-512), one thread
# per job, torch 2.13, November 2026.
MEASURED = {
    "data/classifier": (6.4, 347),
    "data/dedup": (2.0, 248),
    "train/baseline": (65.9, 532),
    "train/iet_agc": (64.6, 569),
    "train/agc": (64.4, 537),
    "train/short": (19.9, 533),
    "train/kept": (55.0, 532),
    "train/rau_net": (72.9, 533),
    "train/loyal": (71.8, 541),
    "train/dp_sgd": (45.0, 837),
    "train/conditional": (69.3, 532),
    "train/finetune": (14.6, 533),
    "train/gradient_ascent": (7.2, 536),
    "train/salun": (26.8, 538),
    "train/selective_amnesia": (26.8, 539),
    "train/erasediff": (23.4, 534),
    "sample/baseline": (12.7, 446),
    "sample/conditional": (13.6, 448),
    "attack/baseline/extraction": (3.9, 245),
    "attack/baseline/quality": (4.9, 461),
    "attack/baseline/membership": (10.7, 575),
    "attack/erasediff/forgetting": (17.9, 580),
}


# Processor seconds of the own work of jobs of the default study (``cpu_seconds`` of run.json), those that took more than 15, when
# it had 700 updates and four jobs that retrain on 12 halves; the same kind of machine, while others used it too.
DEFAULT = {
    "attribution/rep0/features/main/final/0": 29.9,
    "attribution/rep0/retrain/0": 61.4,
    "attribution/rep0/retrain/1": 58.9,
    "attribution/rep0/retrain/2": 61.6,
    "attribution/rep0/retrain/3": 59.4,
    "train/agc/rep0": 35.3,
    "train/baseline/rep0": 34.0,
    "train/conditional/rep0": 37.5,
    "train/dedup/rep0": 33.0,
    "train/erasediff/rep0": 19.4,
    "train/iet_agc/rep0": 39.0,
    "train/kept/rep0": 29.7,
    "train/loyal/rep0": 32.3,
    "train/rau_net/rep0": 39.2,
    "train/retrained/rep0": 31.3,
    "train/split/rep0": 37.2,
    "train/traced/rep0": 19.0,
}


SELECTION = {"base": "baseline", "updates": 500, "switch_timesteps": [500]}


@pytest.mark.parametrize("job", MEASURED)
def test_jobs_of_digits_are_estimated_within_a_factor_of_two(digits, job):
    seconds, megabytes = MEASURED[job]
    phase, *rest = job.split("/")
    step = phase if phase in ("train", "sample") else f"{phase}/{rest[-1]}"
    found = estimate.step_cost(digits(), step, "" if phase == "data" else rest[0])
    assert seconds / 2 < 60 * found.minutes < 2 * seconds
    assert megabytes / 1.5 < found.mem_mb - estimate.ENGINE_MB < 2 * megabytes


def test_long_jobs_of_the_default_study_are_estimated_within_a_factor_of_two(root):
    settings = config.read_yaml(root / "params.yaml")
    settings["train"]["updates"] = 700
    settings["arms"]["traced"]["train"]["updates"] = 400
    settings["attribution"] |= {"subsets": 12, "networks_per_job": 6}
    study = config.parse(settings)
    jobs = {job.folder: job for job in jobs_of(study)}
    for folder, seconds in DEFAULT.items():
        job = jobs[folder]
        own = 60 * estimate.job_cost(study, job).minutes - estimate.START_TORCH
        assert seconds / 2 < own < 2 * seconds, folder


# Processor seconds of the own work of jobs with the data and the numbers of images of ``studies/cifar10-tiny.yaml``, which is not in the
# measured table.
ANOTHER = {
    "data/fetch": 9.4,
    "data/split": 0.8,
    "data/classifier": 37.5,
    "data/dedup": 0.2,
    "attack/extraction": 5.1,
    "attack/quality": 3.7,
}


@pytest.mark.parametrize("step", ANOTHER)
def test_measured_times_hold_for_a_third_study_within_a_factor_of_four(root, monkeypatch, step):
    monkeypatch.setenv("AFTERIMAGE_DATA", "data")
    study = config.load(root / "studies" / "cifar10-tiny.yaml")
    found = measured.measured(study, step, STEPS[step].size(study, "baseline")).seconds
    assert ANOTHER[step] / 4 < found < 4 * ANOTHER[step]


UNMEASURED = {"attribution/acceleration"}
"""Steps that no study in the table has; they take the default of ``measured``."""


def test_every_step_is_measured_or_computes_with_networks_alone():
    """Rows of a new step come from ``benchmarks/measured.py``, after a study that has it."""
    sized = {name for name, step in STEPS.items() if step.size is not None}
    assert sized == set(measured.rows()) | UNMEASURED
    assert not UNMEASURED & set(measured.rows())
    assert all(STEPS[name].networks for name in set(STEPS) - sized)


def test_more_of_the_same_step_never_costs_less():
    for step, rows in measured.rows().items():
        for points in (
            [(row.numbers * row.compared, row.seconds) for row in rows],
            [(row.numbers, row.megabytes) for row in rows],
        ):
            costs = [cost for _, cost in sorted(points)]
            assert costs == sorted(costs), step


TABLE = """step,study,numbers,compared,seconds,megabytes
data/split,small,1000,10,5,100
data/split,large,4000,25,14,400
data/dedup,small,1000,1,2,30
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of two steps."""
    (tmp_path / "measured.csv").write_text(TABLE)
    monkeypatch.setattr(measured, "TABLE", tmp_path / "measured.csv")
    measured.rows.cache_clear()
    yield
    measured.rows.cache_clear()


@pytest.mark.parametrize(
    ("step", "numbers", "compared", "seconds", "megabytes"),
    [
        ("data/split", 1000, 10, 5, 100),
        ("data/split", 4000, 25, 14, 400),
        ("data/split", 2000, 20, 5 + 9 * 30 / 90, 200),  # a third of the way; memory by numbers
        ("data/split", 10, 1, 5, 100),
        ("data/split", 8000, 25, 28, 800),
        ("data/split", 4000, 100, 56, 400),
        ("data/dedup", 3000, 2, 12, 90),
    ],
)
def test_measured_times_are_scaled_by_size(
    table, digits, step, numbers, compared, seconds, megabytes
):
    found = measured.measured(digits(), step, measured.Size(numbers, compared))
    assert found == pytest.approx((seconds, megabytes))


def test_a_step_that_nobody_measured_takes_the_stated_default(table, digits):
    study = digits()
    images = 400 + 800 + 700 + 1024
    found = estimate.step_cost(study, "attack/extraction", "baseline")
    assert 60 * found.minutes == pytest.approx(estimate.START + 60 + images / 100)
    held = found.mem_mb - estimate.ENGINE_MB - estimate.SMALL_MB
    assert held == pytest.approx(16 * images * 64 / 2**20)
    jobs = jobs_of(study)
    assert "attack/extraction" in estimate.unmeasured(jobs)
    assert not {"data/split", "data/dedup", "train", "sample"} & set(estimate.unmeasured(jobs))


def test_the_default_is_no_less_than_any_attack_of_the_default_study(root):
    study = config.load(root / "params.yaml")
    fixed, each = measured.UNMEASURED
    default = fixed + each * measured.images(study)
    for job in jobs_of(study):
        if job.step.startswith("attack/"):
            size = STEPS[job.step].size(study, job.name)
            assert measured.measured(study, job.step, size).seconds < default


def test_projected_gradients_are_estimated_within_a_factor_of_two(digits):
    """Measured separately from the study: CPU seconds of 64 images with all readouts at equal timesteps and
    on one thread."""
    study = digits()
    measured = {
        ("countsketch", 3, 4096): 1.52,
        ("kronecker", 3, 4096): 0.48,
        ("srht", 1, 4096): 1.39,
        ("gaussian", 1, 1024): 2.42,
    }
    for (projection, timesteps, dimension), seconds in measured.items():
        settings = config.Features(projection=projection, timesteps=timesteps, dimension=dimension)
        found = estimate.seconds(
            work.gradients(study, "baseline", 64, settings, readouts=5), estimate.DEVICES["cpu"], 1
        )
        assert seconds / 2 < found < 2 * seconds, projection


def test_every_job_of_a_study_has_a_cost(digits):
    study = digits(loyal_selection=SELECTION, paths={"frontier": ["baseline"]})
    jobs = jobs_of(study) + selection_jobs(study)
    assert {job.step for job in jobs} == set(STEPS) - {
        "data/encode",
        "data/autoencoder",
        "data/latents",
        "attack/prompts",
    }
    for job in jobs:
        found = estimate.job_cost(study, job)
        assert found.minutes > 0
        assert found.mem_mb > estimate.ENGINE_MB
        assert (found.gpu, found.threads, found.device_mb) == (0, 1, 0)


def test_twice_the_updates_are_twice_the_work(digits):
    once, twice = (
        work.training(digits(train__updates=updates), "baseline") for updates in (1500, 3000)
    )
    assert twice == once + once
    longer = [
        estimate.training_minutes(digits(train__updates=updates), "baseline")
        - estimate.START_TORCH / 60
        for updates in (1500, 3000)
    ]
    assert longer[1] == pytest.approx(2 * longer[0])


@pytest.mark.parametrize(
    ("step", "change", "factor"),
    [
        ("sample", {"sample__steps": 100}, 2),
        ("sample", {"sample__images": 4096}, 4),
        ("attack/membership", {"membership__draws": 8, "statistics__bootstrap": 10}, 2),
        ("attack/membership", {"data__flips": True, "statistics__bootstrap": 10}, 2),
    ],
)
def test_work_grows_with_what_there_is_to_do(digits, step, change, factor):
    usual = {key: value for key, value in change.items() if key == "statistics__bootstrap"}
    one, more = (
        STEPS[step].work(digits(**settings), "baseline").fp32 for settings in (usual, change)
    )
    assert more == pytest.approx(factor * one)


def test_guidance_doubles_the_passes_of_conditional_arms_alone(digits):
    for arm, factor in (("conditional", 2), ("baseline", 1)):
        one, guided = (work.drawing(digits(sample__guidance=w), arm, 64) for w in (1.0, 3.0))
        assert guided.fp32 == factor * one.fp32


def test_half_precision_halves_the_flop_of_drawing_on_a_gpu(digits):
    work_of = {
        precision: work.drawing(digits(sample__precision=precision), "baseline", 64)
        for precision in ("fp32", "bf16")
    }
    assert work_of["bf16"].bf16 == work_of["fp32"].fp32
    assert work_of["bf16"].fp32 == 0
    device = estimate.DEVICES["a100"]
    seconds = {
        precision: estimate.seconds(done, device, 1) - done.launches * device.launch
        for precision, done in work_of.items()
    }
    assert seconds["bf16"] == pytest.approx(seconds["fp32"] / 2)


def test_features_of_networks_are_counted_for_all_images_that_they_are_of(digits):
    """Similarity is to the training images, quality that of unseen ones. Pixels are multiplied with
    those of each training image, by a product and a sum in float64."""
    weights = {"similarity_weights": "a", "similarity_sha256": "b"}
    inception = {"inception_weights": "a", "inception_sha256": "b"}
    products = 2 * 2 * (1024 + 800 + 400) * 400 * 64
    for settings, flop in (
        ({"similarity": "sscd"} | weights, work.FEATURES["sscd"] * (1024 + 800 + 400)),
        (
            {"features": "inception"} | inception,
            work.FEATURES["inception"] * (1024 + 800 + 700) + products,
        ),
        ({"similarity": "classifier"}, 0),
        ({}, products),
    ):
        found = STEPS["attack/quality"].work(digits(quality=settings), "baseline")
        assert found.fp32 == flop


def test_pixels_as_features_are_counted_and_those_of_similarity_in_blocks(digits):
    def held(side: int, **settings) -> float:
        study = digits(data__resize=side, quality=settings)
        return STEPS["attack/quality"].memory(study, "baseline").arrays

    network = {"similarity": "sscd", "similarity_weights": "a", "similarity_sha256": "b"}
    assert held(8, **network) == 0
    assert held(8, features="pixels", **network) == 3 * 8 * (1024 + 800 + 700) * 64
    assert held(8) == 3 * 8 * (400 + 400) * 64
    assert held(1024) == 3 * (2**30 + memory.BLOCK)


def test_moments_of_eight_bits_take_a_byte_each(digits):
    plain, eight = (
        memory.learning(digits(train__optimizer=name), "baseline").networks
        for name in ("adamw", "adamw_8bit")
    )
    assert plain - eight == 6 * work.trained_weights(digits(), "baseline")


def test_relearning_is_in_fp32_and_in_one_pass_whatever_the_training_is(digits):
    arm = {"precision": "bf16", "accumulation": 4, "gradient_checkpointing": True}
    held, same, larger = (
        STEPS["attack/forgetting"].memory(study, "baseline").networks
        for study in (
            digits(),
            digits(arms__baseline__train=arm),
            digits(forgetting__relearn_batch_size=64),
        )
    )
    (net, _), *_ = work.networks(digits(), "baseline")
    assert held == same
    assert larger - held == 32 * net.values * memory.SINGLE


def test_checkpointing_takes_a_third_more_time_and_keeps_less(digits):
    plain, again = digits(), digits(arms__baseline__train={"gradient_checkpointing": True})
    held, less = (memory.learning(study, "baseline").networks for study in (plain, again))
    (net, _), *_ = work.networks(plain, "baseline")
    train = plain.train_of("baseline")
    saved = train.batch_size / train.accumulation * (net.values - net.checkpointed)
    assert held - less == pytest.approx(memory.SINGLE * saved)
    once, twice = (work.training(study, "baseline") for study in (plain, again))
    assert twice.fp32 == pytest.approx(once.fp32 * 4 / 3)


def test_budgets_are_those_of_the_trainings(digits):
    """Where a budget is the arm's own, the training's code says the same."""
    study = digits()
    for name, arm in study.arms.items():
        if arm.matched_to is None:
            assert work.budget(study, name) == budget(study.train_of(name), 400, None, None)
    epochs = digits(train__updates=None, train__epochs=7)
    assert (
        work.budget(epochs, "baseline")
        == budget(epochs.train_of("baseline"), 400, None, None)
        == 44
    )


def test_what_arms_spend(digits):
    """The numbers that the finished trainings have in their facts; ``kept`` at its largest, as if
    nothing had been skipped."""
    study = digits()
    assert work.spent(study, "iet_agc") == (1500, 375, 96000, 1500)
    assert work.spent(study, "short") == (375, 375, 24000, 375)
    assert work.spent(study, "kept") == (1500, 1500, 96000, 1500)
    assert work.spent(study, "loyal") == (1500, 750, 96000, 1500)
    literal = digits(arms__loyal={"method": "loyal", "switch_timestep": 250, "budget": "literal"})
    assert work.spent(literal, "loyal") == (3000, 1500, 192000, 3000)
    per_model = digits(
        arms__iet_agc={"method": "iet_agc", "shards": 4, "rounds": 5, "budget": "per_model"}
    )
    assert work.spent(per_model, "iet_agc") == (6000, 1500, 384000, 6000)
    assert work.spent(study, "dp_sgd") == (375, 375, 24000, 375)
    assert work.spent(study, "erasediff") == (200, 200, 12800, 400)
    assert work.spent(study, "salun") == (200, 200, 12800, 400)  # beside the mask's


def test_as_many_passes_are_as_many_updates_of_the_control(digits):
    """Whatever the batch sizes; what is computed before the first update does not count."""
    control = {"method": "baseline", "base": "conditional", "without": "zeros"}
    for name, passes in (("erasediff", 400), ("salun", 400), ("gradient_ascent", 30)):
        match = {"arm": name, "by": "passes"}
        study = digits(arms__equal=control | {"matched_to": match, "train": {"batch_size": 32}})
        assert work.budget(study, "equal") == passes


def test_passes_of_unlearning_are_those_that_trainings_record(digits):
    """backward_passes and forward_only_passes of the facts, in FLOP of one batch."""
    study = digits()
    batch = 64 * work.forward(study, "conditional")
    setup = -(-512 // 64)  # salun's mask
    assert work.training(study, "erasediff").fp32 == pytest.approx(batch * (3 * 400 + 200))
    assert work.training(study, "salun").fp32 == pytest.approx(batch * (3 * (400 + setup) + 200))
    assert work.training(study, "gradient_ascent").fp32 == pytest.approx(batch * (3 * 30 + 30))
    for option in ({"barrier": "gap"}, {"inner_adam": "shared"}):
        inner = study.arms["erasediff"].model_dump() | {"inner_updates": 3} | option
        assert work.training(digits(arms__erasediff=inner), "erasediff").fp32 == pytest.approx(
            batch * (3 * (400 + 600) + (200 + 600) + 200)
        )


def test_blocks_cost_what_they_add_and_only_where_they_are(digits):
    study = digits()
    plain, blocks, half = (work.forward(study, arm) for arm in ("baseline", "rau_net", "loyal"))
    assert plain < half < blocks
    assert half == pytest.approx((plain + blocks) / 2)


def test_a_gpu_is_asked_for_by_steps_that_run_networks_alone(digits):
    study = digits(cluster={"device": "a100", "threads": 4}, loyal_selection=SELECTION)
    for job in jobs_of(study) + selection_jobs(study):
        found = estimate.job_cost(study, job)
        assert found.gpu == STEPS[job.step].networks, job.folder
        assert found.threads == 4
        if found.gpu:
            assert 0 < found.device_mb < estimate.DEVICES["a100"].memory_mb


def test_processes_share_a_training_and_nothing_else(digits):
    alone = digits(cluster={"device": "a100"}, train__updates=10**6)
    four = digits(cluster={"device": "a100", "gpus_per_training": 4}, train__updates=10**6)
    own, shared = (estimate.step_cost(study, "train", "baseline") for study in (alone, four))
    start = estimate.START_GPU / 60
    assert shared.gpu == shared.threads == 4
    assert shared.minutes - start == pytest.approx((own.minutes - start) / 4 / estimate.SHARING)
    assert estimate.step_cost(four, "train", "dp_sgd").gpu == 1
    assert estimate.step_cost(four, "sample", "baseline") == estimate.step_cost(
        alone, "sample", "baseline"
    )


def test_threads_and_parts_divide_the_work_but_not_the_start(digits):
    start = estimate.START_TORCH / 60
    one = estimate.step_cost(digits(), "train", "baseline").minutes - start
    assert estimate.step_cost(
        digits(cluster={"threads": 4}), "train", "baseline"
    ).minutes - start == pytest.approx(one / 4)
    assert estimate.step_cost(
        digits(), "train", "baseline", share=0.1
    ).minutes - start == pytest.approx(one / 10)


def test_a_faster_device_is_never_slower(digits):
    a100, h100 = (
        digits(cluster={"device": device}, train__precision="bf16") for device in ("a100", "h100")
    )
    for job in jobs_of(a100):
        assert estimate.job_cost(h100, job).minutes <= estimate.job_cost(a100, job).minutes


def test_stacked_networks_start_fewer_kernels_for_the_same_flop(digits):
    apart, stacked = (
        STEPS["attribution/retrain"].work(digits(attribution__stacked=on), "0")
        for on in (False, True)
    )
    assert stacked.fp32 == apart.fp32
    assert stacked.launches < apart.launches


def test_a_last_bundle_or_block_costs_what_is_left(digits):
    study = digits(attribution__subsets=9, attribution__seeds=1, attribution__images_per_job=150)
    full, rest = (STEPS["attribution/retrain"].work(study, job).fp32 for job in ("0", "2"))
    assert full == pytest.approx(4 * rest)
    full, rest = (
        STEPS["attribution/features"].work(study, f"main/final/{at}").fp32 for at in (1, 2)
    )
    assert full == pytest.approx(1.5 * rest)


def test_unknown_step_is_an_error(digits):
    with pytest.raises(KeyError):
        estimate.step_cost(digits(), "train/again", "baseline")


def test_what_is_asked_grows_with_the_attempt():
    found = estimate.Cost(minutes=30, mem_mb=1000.5, gpu=2, threads=8)
    assert found.asks(2.0, 1) == {"gpu": 2, "mem_mb": 2001, "runtime": 65}
    assert found.asks(2.0, 3) == {"gpu": 2, "mem_mb": 6003, "runtime": 195}
    assert found.asks(1.0, 1)["runtime"] == 35


def test_a_training_never_asks_for_more_time_than_its_jobs_may_take():
    found = estimate.Cost(minutes=30, mem_mb=1000, gpu=1, threads=1)
    assert [found.asks(2.0, attempt, limit=70.5)["runtime"] for attempt in (1, 2)] == [65, 71]


def test_shares_of_parts_add_up(digits):
    study = digits(cluster={"generations_per_job": 256})
    trained = [f"{k}of5" for k in range(1, 5)]
    assert sum(
        estimate.share_of(study, "train", part, trained) for part in [*trained, None]
    ) == pytest.approx(1)
    drawn = [f"{first}-{first + 256}" for first in range(0, 1024, 256)]
    assert [estimate.share_of(study, "sample", part, drawn) for part in [*drawn, None]] == [
        0.25
    ] * 4 + [0]
    for step in ("train", "sample", "attack/quality"):
        assert estimate.share_of(study, step, None, []) == 1
