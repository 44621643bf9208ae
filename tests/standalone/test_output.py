"""What cannot be written is refused before any work, and a result of another kind is never
overwritten."""

from __future__ import annotations

import json
import os

import pytest

from afterimage.config import ConfigError
from afterimage.standalone import output


@pytest.mark.parametrize("replaced", [False, True])
def test_a_new_or_empty_folder_is_fine_and_nothing_is_left_in_it(tmp_path, replaced):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert output.check(tmp_path / "new" / "deep", (), replaced) == tmp_path / "new" / "deep"
    assert output.check(tmp_path / "link", (), replaced) == tmp_path / "empty"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "link"]


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below", "link/below"])
def test_a_file_or_what_lies_below_one_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"--out .*file is a file; a folder is needed"):
        output.check(tmp_path / place, ())


def test_files_of_somebody_else_are_refused_by_name(tmp_path):
    (tmp_path / "out" / "more").mkdir(parents=True)
    (tmp_path / "out" / "mine.json").write_text("x")
    assert output.check(tmp_path / "out", {"mine.json"}) == tmp_path / "out"
    (tmp_path / "out" / "more" / "thesis.tex").write_text("x")
    with pytest.raises(
        ConfigError, match=r"--out .*: more/thesis\.tex is not of an earlier result"
    ):
        output.check(tmp_path / "out", {"mine.json"})
    (tmp_path / "out" / "more" / "thesis.tex").unlink()
    (tmp_path / "out" / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="gone is not of an earlier result"):
        output.check(tmp_path / "out", {"mine.json"})


def test_a_name_that_no_folder_can_have_and_links_in_a_circle_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="it cannot be written: File name too long"):
        output.check(tmp_path / ("x" * 300), ())
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(ConfigError, match=r"--out .*round.*: it cannot be written: Symlink loop"):
        output.check(tmp_path / "round" / "below", ())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="it cannot be written: Permission denied"):
        output.check(tmp_path / "closed" / "out", ())


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="needs /proc, where not even root makes folders"
)
def test_a_place_where_nothing_can_be_made_is_refused():
    with pytest.raises(ConfigError, match="it cannot be written"):
        output.check(output.Path("/proc/afterimage"), ())


def test_only_what_is_replaced_as_a_whole_may_not_be_a_mount_point(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path == tmp_path)
    assert output.check(tmp_path, ()) == tmp_path
    with pytest.raises(ConfigError, match="mount point"):
        output.check(tmp_path, (), replaced=True)


def test_the_files_of_an_earlier_run_are_those_that_its_record_names(tmp_path):
    run = {"config": {"step": "attribute"}, "outputs": {"first.csv": "00", "a/b.png": "00"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert output.earlier(tmp_path, "attribute") == {"run.json", "first.csv", "a/b.png"}
    assert output.earlier(tmp_path, "sample") == set()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"outputs": {}}', "\xff"])
def test_a_record_that_is_absent_or_damaged_names_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    assert output.earlier(tmp_path, "attribute") == set()
