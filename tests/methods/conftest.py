"""The runs of training's tests."""

from ..training.conftest import (
    curves,
    digits,
    golden,
    in_two_processes,
    make_job,
    one_thread,
    same_bits_after_stops,
    series,
    stop_in_step,
    study,
    unlearner,
)

__all__ = [
    "curves",
    "digits",
    "golden",
    "in_two_processes",
    "make_job",
    "one_thread",
    "same_bits_after_stops",
    "series",
    "stop_in_step",
    "study",
    "unlearner",
]
