"""What the pages call a metric, and of what kind it is."""

import pytest

from afterimage.report import comparison, names


@pytest.mark.parametrize(
    ("metric", "name", "unit", "of_difference"),
    [
        ("flagged_generations_calibrated", "generations flagged", "%", "points"),
        ("forgotten_probability[zeros]", "probability of forgotten class (zeros)", "", ""),
        ("forgotten_extracted_calibrated[a b]", "forgotten images extracted (a b)", "%", "points"),
        ("FD[classifier]", "FD[classifier]", "", ""),
        ("mq@0.5 (share)", "mq@0.5 (share)", "%", "points"),
        ("unique_images_calibrated", "different images extracted", "", ""),
        ("membership_auc", "membership AUC", "", ""),
    ],
)
def test_name_and_unit_of_a_metric(metric, name, unit, of_difference):
    assert names.name_of(metric) == name
    assert names.unit_of(metric) == unit
    assert names.unit_of(metric, difference=True) == of_difference


def test_no_two_metrics_go_by_one_name():
    assert len(set(names.NAMES.values())) == len(names.NAMES)
    assert names.NAMES.keys() <= comparison.METRICS.keys()


def test_the_frechet_distance_is_that_of_the_generations():
    metrics = [
        "KID[inception]",
        "FID[inception] of holdout",
        "FID[inception]",
        "remaining_FD[a, b]",
    ]
    assert names.frechet_of(metrics) == "FID[inception]"
    assert names.frechet_of(["FD[classifier]"]) == "FD[classifier]"
    assert names.frechet_of([*metrics, "FD_balanced[inception]"]) == "FD_balanced[inception]"
    assert names.frechet_of(["FD_balanced[a] of holdout", "FD[a]"]) == "FD[a]"
    with pytest.raises(StopIteration):
        names.frechet_of(["remaining_FD[a, b]", "FD[a] of holdout"])


def test_text_alignment_is_that_of_the_generations_if_any_has_captions():
    metrics = ["text_alignment[a] of holdout", "FD[a]"]
    assert names.alignment_of(metrics) is None
    assert names.alignment_of([*metrics, "text_alignment[a]"]) == "text_alignment[a]"


def test_a_measure_in_its_feature_space():
    assert names.in_space("FD", "inception") == "FID[inception]"
    assert names.in_space("FD", "classifier") == "FD[classifier]"
    assert names.in_space("recall", "inception") == "recall[inception]"
    assert names.space_of("R", ["FD[a]", "R[pixels]"]) == "pixels"
