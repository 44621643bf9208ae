"""What the weights of an arm have seen, also in the trainings of the arms that it starts from."""

import pandas as pd
import pytest

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.data.members import seen


@pytest.fixture
def tables(tmp_path):
    """Return a function that stores tables of members, each in a store of its own."""

    def store(*trained, ids=range(4)):
        files = []
        for number, rows in enumerate(trained):
            folder = tmp_path / str(number)
            folder.mkdir()
            file = folder / "members.parquet"
            numbers = list(ids) if number == 0 else list(range(4))
            marked = [row in rows for row in range(4)]
            pd.DataFrame({"id": numbers, "trained": marked}).to_parquet(file)
            listed = {"members.parquet": artifacts.sha256(file)}
            artifacts.write_json(folder / "run.json", {"outputs": listed})
            files.append(file)
        return files

    return store


def test_weights_have_seen_what_any_training_on_the_way_saw(tables):
    assert seen(tables({0}, {0, 2}, {3}))["trained"].tolist() == [True, False, True, True]


def test_an_arm_without_a_base_has_seen_its_own_images(tables):
    assert seen(tables({1}))["trained"].tolist() == [False, True, False, False]


def test_tables_of_other_images_are_refused(tables):
    with pytest.raises(ArtifactError, match=r"1/members\.parquet lists other images than .*/0/"):
        seen(tables({0}, {1}, ids=[7, 8, 9, 10]))


def test_a_damaged_table_is_refused(tables):
    files = tables({0}, {1})
    pd.DataFrame({"id": range(4), "trained": True}).to_parquet(files[1])
    with pytest.raises(ArtifactError, match=r"members\.parquet"):
        seen(files)
