"""Bad studies end in a message that names the key, the value and what is allowed; good ones give
each job only its own keys."""

import json
from copy import deepcopy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from afterimage import config
from afterimage.plan.jobs import STEPS
from afterimage.plan.resolved import resolve
from afterimage.provenance import digest


def change(params, path, value):
    changed = deepcopy(params)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("dta",), {}, ["dta", "unknown key", "did you mean 'data'"]),
        (("data", "palnt"), [], ["data.palnt", "did you mean 'plant'"]),
        (("data", "plant", 0, "copiess"), 2, ["data.plant.0.copiess", "did you mean 'copies'"]),
        (("data", "source", "pth"), "x", ["data.source.sklearn-digits.pth", "allowed here: kind"]),
        (
            ("arms", "baseline", "fractoin"),
            0.5,
            ["arms.baseline.fractoin", "did you mean 'fraction'"],
        ),
        (
            ("arms", "baseline", "train"),
            {"updats": 3},
            ["arms.baseline.train.updats", "did you mean 'updates'"],
        ),
        (("train", "learning_rate"), -1, ["train.learning_rate", "-1", "greater than 0"]),
        (
            ("statistics", "margin"),
            {"relative_fd": -0.1},
            ["statistics.margin.relative_fd", "-0.1", "greater than or equal to 0"],
        ),
        (
            ("statistics", "margin"),
            {"coverage": 2},
            ["statistics.margin.coverage", "2", "less than or equal to 1"],
        ),
        (
            ("statistics", "margin"),
            {"relative_df": 0.1},
            ["statistics.margin.relative_df", "unknown key", "did you mean 'relative_fd'"],
        ),
        (("statistics", "margin"), 0.1, ["statistics.margin", "0.1"]),
        (
            ("train", "epochs"),
            3,
            ["exactly one of updates and epochs", "updates = 1500", "epochs = 3"],
        ),
        (("train", "accumulation"), 7, ["accumulation = 7", "batch_size = 64"]),
        (("data", "source", "kind"), "parqet", ["data.source", "parqet", "'parquet'"]),
        (("sample", "sampler"), "plms", ["sample.sampler", "plms", "'ddim' or 'ddpm'"]),
        (("model", "attention"), [True], ["attention has 1 entries but channels has 2"]),
        (("model", "norm_groups"), 3, ["16 is not a multiple of norm_groups = 3"]),
        (
            ("arms", "baseline", "base"),
            "dedupe",
            ["arms.baseline.base", "'dedupe'", "did you mean 'dedup'"],
        ),
        (
            ("arms", "baseline", "method"),
            "basline",
            ["arms.baseline.method", "basline", "'baseline'"],
        ),
        (("arms", "Bad Name"), {"method": "baseline"}, ["arms.Bad Name", "pattern"]),
        (("data", "plant", 7, "images"), 40, ["plant asks for", "848", "split.train = 400"]),
        (("data", "images"), 300, ["images = 300 is too few"]),
        (("quality", "features"), "inception", ["inception_weights", "inception_sha256"]),
        (("study",), None, ["study"]),
    ],
)
def test_error_names_key_value_and_allowed(params, path, value, words):
    with pytest.raises(config.ConfigError) as error:
        config.parse(change(params, path, value))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("train", "arm", "words"),
    [
        ({"channels_last": True, "optimizer": "adamw_8bit"}, {}, ["channels_last", "'adamw_8bit'"]),
        (
            {"precision": "fp16"},
            {"method": "gradient_ascent", "base": "baseline", "forget": "zeros"},
            ["arms.own", "precision = 'fp16'", "gradient_ascent", "allowed are fp32 and bf16"],
        ),
        (
            {"compile": True},
            {"method": "dp_sgd", "noise_multiplier": 1.0},
            ["arms.own", "compile of train", "dp_sgd"],
        ),
        (
            {"optimizer": "adamw_8bit"},
            {"method": "iet_agc", "shards": 2, "rounds": 2, "optimizer_sync": "average"},
            ["arms.own", "optimizer_sync = 'average'", "allowed is keep"],
        ),
    ],
    ids=lambda value: value.get("method", "") if isinstance(value, dict) else "",
)
def test_arithmetic_that_a_method_does_not_know_is_refused(params, train, arm, words):
    params["forget"] = {"zeros": {"label": 0}}
    params["arms"] = {"baseline": {"method": "baseline"}}
    for key in ("loyal_selection", "attribution"):
        params[key] = None
    params["paths"] = {"frontier": ["baseline"]}
    assert config.parse(params)
    params["arms"]["own"] = (arm or {"method": "baseline"}) | {"train": train}
    with pytest.raises(config.ConfigError) as error:
        config.parse(params)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("key", ["gradient_checkpointing", "compile"])
def test_networks_trained_at_once_are_trained_plainly(params, key):
    params["attribution"] = TRACED | {"stacked": True}
    assert config.parse(params)
    params["arms"][TRACED["arm"]]["train"] = {key: True}
    with pytest.raises(config.ConfigError, match=f"attribution.stacked.*train.{key} = True"):
        config.parse(params)


def test_missing_key_is_named(params):
    del params["sample"]
    with pytest.raises(config.ConfigError, match="sample: missing"):
        config.parse(params)


def test_all_mistakes_are_told_at_once(params):
    params["dta"] = 1
    params["train"]["ema"] = 2
    with pytest.raises(config.ConfigError) as error:
        config.parse(params)
    assert "dta" in str(error.value)
    assert "train.ema" in str(error.value)


def test_arms_must_not_go_round_in_a_circle(params):
    params["arms"]["baseline"]["base"] = "dedup"
    params["arms"]["dedup"]["base"] = "baseline"
    with pytest.raises(
        config.ConfigError, match="goes round in a circle: baseline -> dedup -> baseline"
    ):
        config.parse(params)


def test_distinct_images_are_counted(params):
    assert config.parse(params).data.distinct == 192


def test_arm_overrides_the_budget(params):
    params["arms"]["baseline"]["train"] = {"epochs": 2}
    study = config.parse(params)
    assert study.train_of("baseline").epochs == 2
    assert study.train_of("baseline").updates is None
    assert study.train_of("dedup").updates == 1500
    assert study.train_of("baseline").learning_rate == study.train.learning_rate


RUN = {name: step for name, step in STEPS.items() if name != "attack/prompts"}
"""All steps but the attack on prompts, which no arm here has."""
ATTACKS = {step for step in RUN if step.startswith("attack/")} - {"attack/path"}
REPORTS = {step for step in RUN if step.startswith(("report/", "selection/"))}


JOBS = {
    "attribution/features": "main/final/0",
    "attribution/retrain": "0",
    "attribution/scores": "main",
    "attribution/counterfactual": "again",
    "attribution/remedied": "erasediff",
    "report/page": "extraction",
}
TRACED = {
    "arm": "baseline",
    "counterfactual": {},
    "remedied": {"before": "conditional", "after": ["erasediff"]},
}


def resolved_of(study, step, arm):
    return resolve(
        study, step, arm, 0 if "replicate" in STEPS[step].address else None, JOBS.get(step)
    )


def digests(params):
    study = config.parse(params | {"attribution": params["attribution"] or TRACED})
    jobs = {
        (step, arm): resolved_of(study, step, arm)
        for step, by in RUN.items()
        for arm in (study.arms if "arm" in by.address else [None])
    }
    return {job: digest(settings) for job, settings in jobs.items()}


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        (("data", "colour"), "rgb", {"data/fetch"}),
        (("data", "split", "holdout"), 700, {"data/split"}),
        (("dedup", "keep"), "medoid", {"data/dedup"}),
        (("classifier", "epochs"), 3, {"data/classifier"}),
        (("model", "dropout"), 0.1, {"train", "attribution/counterfactual", "attribution/retrain"}),
        (
            ("diffusion", "schedule"),
            "linear",
            {"train", "attribution/counterfactual", "attribution/retrain"},
        ),
        (
            ("sample", "steps"),
            10,
            {
                "sample",
                "attribution/features",
                "attribution/counterfactual",
                "attack/forgetting",
                "attack/path",
                "selection/timestep_ablation",
            },
        ),
        (
            ("extraction", "alpha"),
            0.4,
            {
                "attack/extraction",
                "attack/forgetting",
                "attack/path",
                "selection/timestep_ablation",
            },
        ),
        (
            ("quality", "neighbours"),
            3,
            {"attack/quality", "attack/forgetting", "attack/path", "selection/timestep_ablation"},
        ),
        (
            ("statistics", "bootstrap"),
            100,
            ATTACKS | {"selection/timestep_ablation"},
        ),
        (
            ("statistics", "confidence"),
            0.9,
            ATTACKS | REPORTS | {"attribution/scores", "attribution/acceleration"},
        ),
        (("statistics", "margin"), {"relative_fd": 0.2}, {"report/tables"}),
        (("report", "pairs"), 5, {"report/page", "selection/page"}),
        (
            ("data", "flips"),
            True,
            {
                "data/split",
                "data/planting",
                "data/latents",
                "train",
                "attack/extraction",
                "attack/membership",
                "attack/forgetting",
                "attack/path",
                "attribution/retrain",
                "attribution/counterfactual",
                "selection/timestep_ablation",
            },
        ),
        (("attribution", "queries"), {"holdout": 4}, {"attribution/queries"}),
        (
            ("attribution", "features"),
            {"timesteps": 4},
            {"attribution/features", "attribution/remedied"},
        ),
        (("attribution", "regularisers"), [1.0], {"attribution/scores"}),
        (
            ("attribution", "ground_truth"),
            {"draws": 2},
            {"attribution/retrain", "attribution/counterfactual"},
        ),
        (
            ("attribution", "subsets"),
            8,
            {"attribution/retrain", "attribution/scores", "attribution/acceleration"},
        ),
        (("attribution", "shortlist"), 0.1, {"attribution/acceleration"}),
        (("attribution", "checkpoints"), 2, {"train"}),
        (("attribution", "variants"), {"wide": {}}, {"attribution/acceleration", "report/tables"}),
        (("replicates",), 2, {"report/tables", "report/page", "selection/table", "selection/page"}),
    ],
)
def test_a_key_changes_only_the_jobs_that_depend_on_it(params, path, value, changed):
    params |= {"attribution": TRACED}
    before, after = (
        digests(params),
        digests(change({"classifier": {}, "statistics": {}, **params}, path, value)),
    )
    assert {step for (step, _), digest in after.items() if before[step, _] != digest} == changed


def test_one_arms_setting_changes_that_arm_alone(params):
    before = digests(params)
    params["arms"]["dedup"]["train"] = {"updates": 10}
    after = digests(params)
    assert {job for job in after if before[job] != after[job]} == {("train", "dedup")}


@pytest.mark.parametrize("swept", [False, True], ids=["an arm", "an arm of a sweep"])
def test_where_one_arm_mirrors_images_every_arm_is_searched_with_mirrors(params, swept):
    """Else its control would be searched in another way, and its mirrored copies not found."""
    before = digests(params)
    if swept:
        block = {"of": "agc", "over": {"augment_below": [1.5, None]}}
        params["sweeps"] = {"plus": block}
    else:
        params["arms"]["plus"] = params["arms"]["agc"] | {"augment_below": 1.5}
    study = config.parse(params)
    assert study.mirrors
    for arm in study.arms:
        assert resolve(study, "attack/extraction", arm, 0)["settings"]["mirrors"]
    selection = resolve(study, "selection/timestep_ablation", None, 0)
    assert selection["settings"]["mirrors"]
    assert not resolve(study, "attack/membership", "agc", 0)["settings"]["flips"]
    assert not resolve(study, "train", "agc", 0)["settings"]["flips"]
    after = digests(params)
    assert {step for (step, _), value in before.items() if after[step, _] != value} - REPORTS == {
        "attack/extraction",
        "attack/forgetting",
        "attack/path",
    }


@given(st.permutations(["a", "b", "c", "d"]))
def test_digest_ignores_the_order_of_keys(order):
    values = dict(zip("abcd", (1, [2.5, "x"], None, {"y": True}), strict=True))
    assert digest({key: values[key] for key in order}) == digest(values)


def test_resolved_config_is_plain_json(params):
    study = config.parse(params | {"attribution": TRACED})
    for step, by in RUN.items():
        settings = resolved_of(study, step, "baseline" if "arm" in by.address else None)
        assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"replicates": 2}, ["attribution.replicates = 2", "replicates = 1"]),
        ({"replicates": 0}, ["attribution.replicates = 0", "greater than or equal to 1"]),
        ({"arm": "basline"}, ["attribution.arm = 'basline'", "did you mean 'baseline'"]),
        ({"arm": "iet_agc"}, ["attribution.arm = 'iet_agc'", "method baseline"]),
        ({"arm": "kept"}, ["attribution.arm = 'kept'", "a budget of its own"]),
        ({"arm": "soft"}, ["attribution.arm = 'soft'", "on all its images alike"]),
        ({"attributors": ["dass"]}, ["'dass'", "allowed are das,"]),
        (
            {"features": {"timesteps": 2000}},
            ["attribution.features.timesteps = 2000", "diffusion.timesteps = 1000"],
        ),
        (
            {"variants": {"long": {"timesteps": 2000}}},
            ["attribution.variants.long.timesteps = 2000"],
        ),
        ({"variants": {"main": {}}}, ["variants.main"]),
        (
            {"variants": {"odd": {"projection": "fourier"}}},
            ["variants.odd.projection = 'fourier'", "countsketch"],
        ),
        (
            {"queries": {"generated": 5000}},
            ["attribution.queries.generated = 5000", "sample.images = 1024"],
        ),
        (
            {"queries": {"holdout": 5000}},
            ["attribution.queries.holdout = 5000", "data.split.holdout = 800"],
        ),
        (
            {"counterfactual": {"attributors": ["gas"]}, "attributors": ["das", "pixel_l2"]},
            ["counterfactual", "'gas'"],
        ),
        (
            {"counterfactual": {"queries": 40}},
            ["counterfactual.queries = 40", "queries.generated = 32"],
        ),
        (
            {"counterfactual": {"remove": 400}},
            ["attribution.counterfactual.remove = 400", "data.split.train = 400"],
        ),
        ({"reference": "t100"}, ["reference = 't100'", "main"]),
        (
            {"remedied": {"before": "condtional", "after": ["erasediff"]}},
            ["before = 'condtional'", "did you mean 'conditional'"],
        ),
        (
            {"remedied": {"before": "conditional", "after": ["baseline"]}},
            ["after = 'baseline'", "forgets nothing"],
        ),
        (
            {"remedied": {"before": "loyal", "after": ["erasediff"]}},
            ["before = 'loyal'", "one network"],
        ),
        (
            {"remedied": {"before": "dedup", "after": ["erasediff"]}},
            ["after = 'erasediff'", "planted", "deduplicated"],
        ),
        (
            {"remedied": {"before": "conditional", "after": ["erasediff"], "queries": 5000}},
            ["queries = 5000", "1024"],
        ),
        (
            {
                "remedied": {
                    "before": "conditional",
                    "after": ["erasediff"],
                    "attributors": ["tracin"],
                }
            },
            ["remedied.attributors", "tracin"],
        ),
        (
            {
                "attributors": ["trak"],
                "remedied": {"before": "conditional", "after": ["erasediff"]},
            },
            ["remedied", "'das'"],
        ),
        ({"ground_truth": {"timesteps": 2000}}, ["attribution.ground_truth.timesteps = 2000"]),
    ],
)
def test_what_cannot_be_attributed_is_refused(params, keys, words):
    params["arms"]["soft"] = {"method": "baseline", "weights": "inverse_copies"}
    with pytest.raises(config.ConfigError) as error:
        config.parse(params | {"attribution": {"arm": "baseline"} | keys})
    for word in words:
        assert word in str(error.value)


def test_schema_file_is_what_the_classes_say(root):
    stored = json.loads((root / "workflow" / "schemas" / "params.schema.json").read_text())
    assert stored == config.schema(), (
        "run: afterimage config schema > workflow/schemas/params.schema.json"
    )


def test_every_key_is_described():
    schema = config.schema()
    undescribed = [
        f"{name}.{key}"
        for name, block in [("Study", schema), *schema["$defs"].items()]
        for key, field in block["properties"].items()
        if "description" not in field and "const" not in field
    ]
    assert undescribed == []


def test_every_study_is_valid(root):
    studies = [root / "params.yaml", *sorted((root / "studies").glob("*.yaml"))]
    assert len(studies) >= 3
    names = [config.load(path).study for path in studies]
    assert len(set(names)) == len(names), "two studies would write into one folder"


def test_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("AFTERIMAGE_NOWHERE", raising=False)
    with pytest.raises(config.ConfigError, match="AFTERIMAGE_NOWHERE is not set"):
        config.expand("${AFTERIMAGE_NOWHERE}/x")
    monkeypatch.setenv("AFTERIMAGE_NOWHERE", "/there")
    assert config.expand("$AFTERIMAGE_NOWHERE/x") == "/there/x"


def test_a_path_that_exists_is_not_expanded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$HOME").mkdir()
    assert config.expand("$HOME") == "$HOME"


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(config.ConfigError, match="the path is empty"):
        config.expand("")


def test_file_that_is_missing_no_mapping_or_no_yaml(tmp_path):
    with pytest.raises(
        config.ConfigError, match=r"none\.yaml cannot be read: No such file or directory"
    ):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(config.ConfigError, match="must hold a mapping"):
        config.load(tmp_path / "list.yaml")
    with pytest.raises(config.ConfigError, match="is not YAML"):
        config.load(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("seed: 99\n", [r"seed stands 2 times", "in lines"]),
        ("arms: {baseline: {method: baseline}}\narms: {}\n", ["arms stands 3 times"]),
        (
            "forget:\n  zero: {label: 0}\n  one: {label: 1}\n  zero: {label: 2}\n",
            ["forget.zero stands 2 times"],
        ),
        ("notes: [{a: 1, b: 2, 'a': 3}]\n", ["notes.0.a stands 2 times"]),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name_and_lines(root, tmp_path, more, words):
    text = (root / "params.yaml").read_text()
    (tmp_path / "study.yaml").write_text(text + "\n" + more)
    with pytest.raises(config.ConfigError) as error:
        config.load(tmp_path / "study.yaml")
    for word in ["study.yaml", *words]:
        assert word in str(error.value)


def test_the_lines_of_a_key_are_counted_from_one(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\nb:\n  c: 1\n\n  c: 2\n")
    with pytest.raises(
        config.ConfigError, match=r"a\.yaml: b\.c stands 2 times in one mapping, in lines 3, 5"
    ):
        config.read_yaml(tmp_path / "a.yaml")


def test_a_key_may_override_one_that_is_merged_in_and_stand_in_several_mappings(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "base: &base {a: 1, b: 2}\nx: {<<: *base, a: 3}\ny: *base\nz: {<<: *base, <<: {c: 4}}\n"
    )
    params = config.read_yaml(tmp_path / "a.yaml")
    assert params["x"] == {"a": 3, "b": 2}
    assert params["z"] == {"a": 1, "b": 2, "c": 4}


def test_yaml_that_holds_itself_ends(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [*a]\nb: 1\nb: 2\n")
    with pytest.raises(config.ConfigError, match="b stands 2 times"):
        config.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("study: é\n".encode("utf-16"), "a.yaml is UTF-16: save it as UTF-8"),
        (
            "study: é\n".encode("utf-16-le"),
            "a.yaml is no text, or UTF-16 without its mark: save it as UTF-8",
        ),
        ("study: é\n".encode("utf-32"), "a.yaml is UTF-32"),
        (
            "a: 1\nstudy: é\n".encode("latin-1"),
            r"a.yaml is not UTF-8: byte 0xe9 in line 2 \(Latin-1\?\)",
        ),
        (b"a:\n\tb: 1\n", r"a.yaml is not YAML: line 2: found character '\\t'"),
        (b"a: 1\n---\nb: 2\n", "a.yaml is not YAML: line 2: but found another document"),
        (
            b"a: !!python/object:os.system {}\n",
            "a.yaml is not YAML: line 1: could not determine a constructor",
        ),
        (
            b"a: 2024-02-31\n",
            "a.yaml is not YAML: a value is not of the type .*day is out of range",
        ),
        (b"a: !!bool maybe\n", "a.yaml is not YAML: a value is not of the type"),
        (b"a: !!timestamp today\n", "a.yaml is not YAML: a value is not of the type"),
        (b"a: \x01\n", "a.yaml is not YAML: .*special characters are not allowed"),
        (b"[" * 5000, "a.yaml is not YAML"),
        (b"", "a.yaml must hold a mapping of keys, but it holds nothing"),
        (b"just words\n", "a.yaml must hold a mapping of keys, but it holds a str"),
    ],
)
def test_a_text_that_is_no_study_is_one_clear_message(tmp_path, data, words):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(config.ConfigError, match=words):
        config.read_yaml(tmp_path / "a.yaml")


def test_the_mark_of_utf_8_is_not_part_of_the_first_key(root, tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbf" + (root / "params.yaml").read_bytes())
    assert config.load(tmp_path / "a.yaml") == config.load(root / "params.yaml")


def test_what_is_done_to_sizes_is_part_of_fetching_alone(params):
    before = digests(params)
    params["data"] |= {"resize": 6, "resize_filter": "box"}
    after = digests(params)
    assert {step for (step, _), digest in after.items() if before[step, _] != digest} == {
        "data/fetch"
    }


@pytest.mark.parametrize("key", ["resize_filter", "crop"])
def test_an_unknown_transform_is_refused_with_what_is_allowed(params, key):
    params["data"][key] = "nearest"
    with pytest.raises(config.ConfigError, match=rf"data\.{key} = 'nearest': Input should be"):
        config.parse(params)


@pytest.mark.parametrize(
    ("key", "value"), [("methods", ["exact", "caption"]), ("same_caption", True)]
)
def test_deduplication_by_caption_needs_captions(params, key, value):
    params["dedup"][key] = value
    with pytest.raises(config.ConfigError, match=rf"dedup\.{key} = .* needs captions, but data"):
        config.parse(params)
    params["data"]["source"] = {"kind": "parquet", "path": "a", "caption_column": "text"}
    assert getattr(config.parse(params).dedup, key) == value


def test_yaml_exponents_are_numbers(params):
    params["train"]["learning_rate"] = yaml.safe_load("1e-3")  # text in YAML 1.1
    assert config.parse(params).train.learning_rate == 1e-3


# ---- arms that name others -----------------------------------------------------------------------

ERASE = {"method": "erasediff", "base": "conditional", "forget": "zero"}


@pytest.fixture
def many(params):
    """A study with arms of several kinds, to harm."""
    params["forget"] = {"zero": {"label": 0}, "found": {"extracted_from": "conditional"}}
    params["arms"] = {
        "baseline": {"method": "baseline"},
        "conditional": {"method": "baseline", "condition": "label"},
        "erasediff": dict(ERASE),
        "retrained": {"method": "baseline", "condition": "label", "without": "zero"},
        "iet": {"method": "iet_agc", "shards": 5, "rounds": 3, "agc_threshold": 0},
        "short": {"method": "baseline", "matched_to": {"arm": "iet", "by": "updates_per_model"}},
        "rau_net": {"method": "baseline", "rau_net": {"groups": [2]}},
        "loyal": {"method": "loyal", "switch_timestep": 500, "rau_net": {"groups": [2]}},
    }
    return params


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (
            {"method": "baseline", "control": "basline"},
            ["arms.new.control = 'basline'", "did you mean 'baseline'"],
        ),
        (
            {"method": "baseline", "matched_to": {"arm": "ie", "by": "updates"}},
            ["arms.new.matched_to.arm = 'ie'", "did you mean 'iet'"],
        ),
        (
            {"method": "baseline", "without": "one"},
            ["arms.new.without = 'one'", "sets are: zero, found"],
        ),
        (ERASE | {"forget": "zerro"}, ["arms.new.forget = 'zerro'", "did you mean 'zero'"]),
        ({"method": "erasediff", "base": "conditional"}, ["arms.new.forget: missing"]),
        (
            ERASE | {"base": "baseline"},
            [
                "target = 'relabel' needs labels or captions",
                "base = 'baseline' was trained without",
            ],
        ),
        (
            ERASE | {"method": "salun", "base": "baseline"},
            ["method salun needs labels or captions"],
        ),
        (ERASE | {"base": "loyal"}, ["base = 'loyal' is two networks", "method erasediff"]),
        (ERASE | {"rau_net": {"groups": [1]}}, ["rau_net cannot be given"]),
        (
            ERASE | {"data": "deduplicated"},
            ["data = 'deduplicated'", "base = 'conditional' was trained on data = 'planted'"],
        ),
        (
            {"method": "baseline", "dedup": {"keep": "medoid"}},
            ["dedup = {'keep': 'medoid'}", "data = 'deduplicated', not 'planted'"],
        ),
        (
            {"method": "baseline", "data": "deduplicated", "dedup": {"kep": "medoid"}},
            ["arms.new.dedup.kep: unknown key", "did you mean 'keep'"],
        ),
        (
            {"method": "baseline", "data": "deduplicated", "dedup": {"same_caption": True}},
            ["arms.new.dedup.same_caption = True needs captions"],
        ),
        (ERASE | {"fraction": 0.5}, ["method erasediff", "fraction = 0.5 of base = 'conditional'"]),
        (ERASE | {"without": "zero"}, ["without cannot be given too"]),
        (ERASE | {"condition": "none"}, ["condition = 'none'", "has condition 'label'"]),
        (
            {"method": "baseline", "rau_net": {"groups": [3]}},
            ["rau_net.groups = [3]", "groups 0 to 2"],
        ),
        ({"method": "dp_sgd"}, ["exactly one of epsilon and noise_multiplier"]),
        (
            {"method": "loyal", "switch_timestep": 1001},
            ["switch_timestep = 1001", "diffusion.timesteps = 1000"],
        ),
        (
            {"method": "iet_agc", "shards": 7, "rounds": 1},
            ["1500 updates", "shards = 7", "the nearest number that can is 1498"],
        ),
        (
            {"method": "iet_agc", "shards": 5, "rounds": 7, "budget": "per_model"},
            ["1500 updates", "nearest number that can is 1498"],
        ),
        (
            {
                "method": "baseline",
                "matched_to": {"arm": "iet", "by": "updates"},
                "train": {"updates": 4},
            },
            ["matched_to or train.updates", "not both"],
        ),
        (
            {"method": "baseline", "base": "rau_net", "rau_net": {"groups": [1]}},
            ["base = 'rau_net' has blocks trained_random in groups [2]", "in groups [1]"],
        ),
        (
            {"method": "iet_agc", "base": "rau_net", "rau_net": {"groups": [2], "variant": "none"}},
            ["base = 'rau_net' has blocks", "no blocks cannot start"],
        ),
        (
            {"method": "loyal", "switch_timestep": 500, "base": "rau_net"},
            ["base = 'rau_net' has blocks", "no blocks cannot start"],
        ),
        (
            {"method": "loyal", "switch_timestep": 5, "base": "loyal", "blocks_in": "front"},
            ["base = 'loyal' has blocks", "no blocks cannot start"],
        ),
        (
            ERASE | {"matched_to": {"arm": "iet", "by": "passes"}},
            ["arms.new: matched_to.by = 'passes'", "makes 2 backward passes", "method baseline"],
        ),
        (
            {
                "method": "iet_agc",
                "shards": 5,
                "rounds": 3,
                "budget": "per_model",
                "matched_to": {"arm": "erasediff", "by": "passes"},
            },
            ["matched_to.by = 'passes'", "makes 5 backward passes"],
        ),
        (
            {"method": "baseline", "weights": "copies"},
            ["arms.new.weights = 'copies'", "'none' or 'inverse_copies'"],
        ),
        ({"method": "iet_agc", "weights": "inverse_copies"}, ["arms.new.weights: unknown key"]),
        (
            {"method": "iet_agc", "skipping": "chance"},
            ["arms.new.skipping = 'chance'", "'loss' or 'random'"],
        ),
        (
            {"method": "iet_agc", "sharding": "source"},
            ["arms.new.sharding = 'source'", "'by_source'"],
        ),
        ({"method": "baseline", "base": "new"}, ["goes round in a circle: new -> new"]),
    ],
)
def test_combinations_that_cannot_be_are_refused_by_name(many, arm, words):
    many["arms"]["new"] = arm
    with pytest.raises(config.ConfigError) as error:
        config.parse(many)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "baseline", "base": "baseline", "rau_net": {"groups": [1, 2]}},
        {"method": "iet_agc", "shards": 5, "rounds": 3, "base": "rau_net"},
        {"method": "baseline", "base": "rau_net", "rau_net": {"groups": [2, 2]}},
        {"method": "loyal", "switch_timestep": 5, "base": "rau_net", "blocks_in": "both"},
        {"method": "loyal", "switch_timestep": 5, "base": "loyal"},
        {"method": "loyal", "switch_timestep": 5, "base": "baseline", "rau_net": {"groups": [1]}},
    ],
)
def test_blocks_can_be_put_into_a_trained_network_or_taken_with_it(many, arm):
    many["arms"]["new"] = arm
    assert "new" in config.parse(many).arms


def test_one_generation_cannot_both_choose_a_set_and_judge_it(many):
    many["sample"]["images"] = 1
    with pytest.raises(
        config.ConfigError, match=r"images = 1: forget\.found\.extracted_from needs"
    ):
        config.parse(many | {"attribution": None})


def test_a_set_is_of_one_kind(many):
    many["forget"]["zero"] = {"label": 0, "ids": [1]}
    with pytest.raises(
        config.ConfigError,
        match="exactly one of label, caption, ids and extracted_from, not label and ids",
    ):
        config.parse(many)


def test_a_circle_through_a_set_is_found(many):
    many["arms"]["conditional"]["without"] = "found"
    with pytest.raises(
        config.ConfigError, match="goes round in a circle: conditional -> conditional"
    ):
        config.parse(many)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({}, ["paths.frontier: missing"]),
        ({"frontier": []}, ["paths.frontier"]),
        ({"frontier": ["baselin"]}, ["paths.frontier", "'baselin' is not an arm", "'baseline'?"]),
        (
            {"frontier": ["baseline"], "arms": ["lojal"]},
            ["paths.arms = ['lojal']", "did you mean 'loyal'"],
        ),
        ({"frontier": ["loyal"]}, ["'loyal' is not trained plainly"]),
        ({"frontier": ["wide"]}, ["'wide' is not trained plainly"]),
        ({"frontier": ["weighted"]}, ["'weighted' is not trained plainly"]),
        ({"frontier": ["matched"]}, ["'matched' is not trained plainly"]),
        ({"frontier": ["baseline", "longer"]}, ["'baseline' and 'longer' both have", "'none'"]),
        ({"frontier": ["baseline"], "states": 1}, ["paths.states", "1"]),
        ({"frontier": ["baseline"], "first": 1.0}, ["paths.first", "1.0"]),
        ({"frontier": ["baseline"], "images": 5000}, ["paths.images = 5000", "sample.images = "]),
    ],
)
def test_paths_that_cannot_be_are_refused_by_name(many, paths, words):
    many["arms"]["longer"] = {"method": "baseline", "train": {"updates": 2000}}
    many["arms"]["wide"] = {"method": "baseline", "train": {"batch_size": 128}}
    many["arms"]["weighted"] = {"method": "baseline", "weights": "inverse_copies"}
    many["arms"]["matched"] = {"method": "baseline", "matched_to": {"arm": "iet", "by": "updates"}}
    with pytest.raises(config.ConfigError) as error:
        config.parse(many | {"paths": paths})
    for word in words:
        assert word in str(error.value)


def test_an_arm_is_compared_with_the_plain_one_of_its_condition(many):
    study = config.parse(many | {"paths": {"frontier": ["baseline", "conditional"]}})
    assert study.frontier_of("loyal") == "baseline"
    assert study.frontier_of("baseline") is None
    unlearning = {name for name, arm in study.arms.items() if arm.base == "conditional"}
    assert {study.frontier_of(name) for name in unlearning} == {"conditional"}
    alone = config.parse(many | {"paths": {"frontier": ["baseline"], "arms": ["loyal"]}})
    assert alone.path_of("loyal") == alone.path_of("baseline") != {}
    assert alone.path_of("conditional") == {}
    assert config.parse(many).path_of("baseline") == {}


def test_what_an_arm_takes_from_its_base_is_resolved(many):
    many["arms"]["conditional"]["rau_net"] = {"groups": [1]}
    settings = resolve(config.parse(many), "train", "erasediff", 0)["settings"]
    assert settings["arm"]["condition"] == "label"
    assert settings["arm"]["rau_net"]["groups"] == [1]
    assert settings["forget"]["zero"]["label"] == 0
    assert list(settings["forget"]) == ["zero"]


def test_needs_are_the_arms_that_must_be_trained_before(many):
    many["arms"]["again"] = ERASE | {"forget": "found"}
    study = config.parse(many)
    assert study.needs("baseline") == []
    assert study.needs("erasediff") == ["conditional"]
    assert study.needs("short") == ["iet"]
    assert study.needs("again") == ["conditional"]


def test_arms_are_judged_on_their_own_sets_and_on_those_of_what_starts_from_them(many):
    many["arms"]["again"] = ERASE | {"forget": "found"}
    study = config.parse(many)
    judged = {arm: study.forget_sets_of(arm) for arm in study.arms}
    assert judged["conditional"] == ["zero", "found"]
    assert judged["again"] == ["found"]
    assert judged["retrained"] == ["zero"]
    assert judged["baseline"] == []


def test_a_control_only_changes_the_tables(many):
    before = digests(many)
    many["arms"]["iet"]["control"] = "baseline"
    assert {step for (step, _), digest in digests(many).items() if before[step, _] != digest} == {
        "report/tables"
    }


# ---- sweeps --------------------------------------------------------------------------------------


def swept(params, over, of="agc"):
    return config.parse(params | {"sweeps": {"strength": {"of": of, "over": over}}})


def test_a_sweep_makes_an_arm_of_each_value_but_the_one_that_the_swept_arm_has(params):
    study = swept(params, {"agc_threshold": [0.25, 0.5, 1.0]})
    names = list(study.arms)
    at = names.index("agc")
    assert names[at : at + 3] == ["agc", "agc_agc_threshold0p25", "agc_agc_threshold1"]
    assert set(names) - set(params["arms"]) == set(names[at + 1 : at + 3])
    for name, threshold in zip(names[at + 1 : at + 3], (0.25, 1.0), strict=True):
        assert study.arms[name] == study.arms["agc"].model_copy(update={"agc_threshold": threshold})
    assert study.swept == {
        "strength": {
            "agc_agc_threshold0p25": {"agc_threshold": 0.25},
            "agc": {"agc_threshold": 0.5},
            "agc_agc_threshold1": {"agc_threshold": 1.0},
        }
    }


def test_several_keys_are_combined_and_keys_of_blocks_keep_the_rest_of_the_block(params):
    over = {"train.updates": [100, 300], "eta": ["1e-3", 0.1]}
    study = swept(params, over, of="erasediff")
    points = study.swept["strength"]
    assert len(points) == 4
    for name, point in points.items():
        assert name == f"erasediff_updates{point['train.updates']}_eta" + (
            "0p001" if point["eta"] == 0.001 else "0p1"
        )
        train = study.train_of(name)
        assert train.updates == point["train.updates"]
        assert train.learning_rate == 5e-4  # the swept arm's own
        assert study.arms[name].eta == point["eta"]
        assert study.arms[name].control == "retrained"


def test_a_value_that_the_arm_has_from_the_studys_train_block_makes_no_arm(params):
    study = swept(params, {"train.batch_size": [64, 256]}, of="baseline")
    assert list(study.swept["strength"]) == ["baseline", "baseline_batch_size256"]
    assert "baseline_batch_size64" not in study.arms


@pytest.mark.parametrize(
    ("of", "over"),
    [
        ("agc", {"agc_threshold": [0.25, 0.5], "shards": [1, 2]}),
        ("baseline", {"train.learning_rate": ["2e-3", "1e-3"], "rau_net.groups": [[1], [1, 2]]}),
        ("loyal", {"budget": ["literal", "matched_total"]}),
    ],
)
def test_a_study_is_not_expanded_twice(params, of, over):
    study = swept(params, over, of)
    again = config.parse(json.loads(study.model_dump_json()))
    assert again == study
    assert list(again.arms) == list(study.arms)
    assert again.swept == study.swept
    assert study.with_selection.arms.keys() > study.arms.keys()
    assert study.with_selection.swept == study.swept


def test_swept_arms_are_jobs_like_any_other(params):
    before = digests(params)
    params["sweeps"] = {"strength": {"of": "agc", "over": {"agc_threshold": [0.25]}}}
    after = digests(params)
    added = {arm for step, arm in after.keys() - before.keys()}
    assert added == {"agc_agc_threshold0p25"}
    changed = {step for (step, arm), value in before.items() if after[step, arm] != value}
    assert changed == REPORTS & changed


@pytest.mark.parametrize(
    ("of", "over", "words"),
    [
        ("agcc", {"shards": [2]}, ["sweeps.strength.of = 'agcc'", "did you mean 'agc'"]),
        ("agc", {}, ["sweeps.strength.over", "at least 1"]),
        ("agc", {"shards": []}, ["sweeps.strength.over.shards", "at least 1"]),
        ("agc", {"shards": 2}, ["sweeps.strength.over.shards = 2", "list"]),
        (
            "agc",
            {"agc_treshold": [1]},
            ["sweeps.strength.over.agc_treshold = 1", "did you mean 'agc_threshold'"],
        ),
        (
            "agc",
            {"agc_threshold": [1, -1]},
            ["sweeps.strength.over.agc_threshold = -1", "greater than or equal to 0"],
        ),
        (
            "agc",
            {"agc_threshold.x": [1]},
            ["sweeps.strength.over.agc_threshold.x", "0.5 is not a block"],
        ),
        (
            "baseline",
            {"train.updats": [1]},
            ["sweeps.strength.over.train.updats = 1", "did you mean 'updates'"],
        ),
        (
            "baseline",
            {"train": [{"updates": 1}]},
            ["sweeps.strength.over.train", "{'updates': 1}", "train.updates"],
        ),
        ("agc", {"agc_threshold": [1, 1.0]}, ["sweeps.strength.over.agc_threshold = 1.0", "once"]),
        (
            "iet_agc",
            {"shards": [4, 7]},
            ["sweeps.strength.over.shards = 7", "the nearest number that can is 1505"],
        ),
        (
            "baseline",
            {"control": ["short", "dedupe"]},
            ["sweeps.strength.over.control = 'dedupe'", "did you mean 'dedup'"],
        ),
        (
            "selective_amnesia",
            {"fisher_timesteps": [10], "fisher_samples": [10], "replay_images": [10]},
            ["sweeps.strength.over.fisher_samples = 10", "at most 60"],
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_key_and_value(params, of, over, words):
    with pytest.raises(config.ConfigError) as error:
        swept(params, over, of)
    for word in words:
        assert word in str(error.value)


def test_a_sweep_does_not_replace_an_arm_of_the_same_name(params):
    params["arms"]["agc_shards2"] = {"method": "baseline"}
    with pytest.raises(config.ConfigError, match=r"strength.over.shards = 2 .* arms.agc_shards2"):
        swept(params, {"shards": [2]})
