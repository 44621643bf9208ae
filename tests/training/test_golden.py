"""The first losses of a tiny run, held in ``tests/golden/baseline.json``; every method's test file
has its own.

A change that should not alter results must leave them as they are. After one that should, write
them again with ``AFTERIMAGE_WRITE_GOLDEN=1 pytest tests/training -k
first_losses_are_those_on_record`` and say in the commit why they moved.
"""

from afterimage.methods import baseline


def test_first_losses_are_those_on_record(make_job, tmp_path, series, golden):
    job = make_job(
        tmp_path, images=64, updates=10, batch_size=16, log_every=1, condition="label", flips=True
    )
    baseline.train(job)
    golden("baseline", {"losses": series(job.store.curves)["loss"]})
