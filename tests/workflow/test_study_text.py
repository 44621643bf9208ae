"""Snakemake reads a study's text itself, and keeps the last of several keys of one name: the
workflow looks first."""

import pytest


@pytest.mark.parametrize("given", [False, True])
def test_a_key_that_stands_twice_stops_the_planning(empty, given):
    text = f"{empty.params.read_text()}\nseed: 99\n"
    path = empty.folder / "other.yaml" if given else empty.params
    path.write_text(text)
    flags = ["--configfile", path.name] if given else []
    done = empty.snakemake(*flags, "--", "all", check=False)
    assert done.returncode != 0
    assert f"{path.name}: seed stands 2 times in one mapping, in lines" in done.stderr
