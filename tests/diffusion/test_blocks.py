"""Generations drawn in blocks are, put together, the very bytes of one process, and only blocks
that belong together are."""

import pytest

from afterimage import artifacts, cli, config, provenance

BLOCKS = ["0:5", "5:10", "10:12"]


@pytest.fixture
def drawn(command, tmp_path, capsys):
    """Return a function that draws blocks of 12 images in batches of 5, and gives the folders."""

    def draw(model, blocks=BLOCKS, **more):
        for block in blocks:
            assert cli.main([*command(model, f"block-{block}", **more), "--block", block]) == 0, (
                capsys.readouterr().err
            )
        return [tmp_path / f"block-{block}" for block in blocks]

    return draw


@pytest.fixture
def together(command, tmp_path, capsys):
    """Return a function that puts blocks together in ``out``, and gives the status and what was
    said."""

    def put(model, folders, out: str = "out", **more) -> tuple[int, str]:
        done = cli.main([*command(model, out, **more), "--blocks", *map(str, folders)])
        return done, capsys.readouterr().err

    return put


@pytest.mark.parametrize(
    "sample", [{}, {"sampler": "ddpm"}, {"eta": 0.5, "guidance": 2.0, "classes": 5}], ids=str
)
def test_blocks_are_the_bytes_of_one_job(sample, model_store, command, drawn, together, tmp_path):
    settings = dict(sample)
    model = model_store(settings.pop("classes", None))
    assert cli.main(command(model, "whole", **settings)) == 0
    folders = drawn(model, **settings)
    assert set(artifacts.check_store(folders[0])["outputs"]) == {"images.npz"}
    assert together(model, reversed(folders), **settings) == (0, "")
    whole, merged = (
        artifacts.check_store(tmp_path / "whole"),
        artifacts.check_store(tmp_path / "out"),
    )
    assert merged["outputs"] == whole["outputs"]
    assert set(whole["outputs"]) == {"images.npz", "grid.png"}
    for key in ("inputs", "config", "config_sha256", "code_sha256"):
        assert merged[key] == whole[key]
    assert whole["facts"]["parts"] == []
    assert merged["facts"]["parts"] == ["block-10:12", "block-5:10", "block-0:5"]
    assert whole["facts"].keys() == merged["facts"].keys()
    assert merged["facts"]["images"] == 12
    seconds = sum(artifacts.read_run(folder)["facts"]["sampling_seconds"] for folder in folders)
    assert merged["facts"]["sampling_seconds"] == pytest.approx(seconds)


def test_a_block_of_another_network_is_refused_by_name(model_store, drawn, together, tmp_path):
    model = model_store()
    first, *_ = drawn(model, BLOCKS[:1])
    rest = drawn(model_store(seed=7), BLOCKS[1:])
    done, said = together(model, [first, *rest])
    assert done == 2
    assert f"{first} was drawn from another network" in said
    assert not (tmp_path / "out").exists()


def test_a_block_of_another_config_is_refused_by_name(model_store, drawn, together):
    model = model_store()
    rest, last = drawn(model, BLOCKS[:2]), drawn(model, BLOCKS[2:], steps=3)
    done, said = together(model, [*rest, *last])
    assert done == 2
    assert f"{last[0]} was made under another config: settings.steps was 3, is now 2" in said


def test_a_block_of_other_code_is_refused_by_name(model_store, drawn, together, monkeypatch):
    model = model_store()
    folders = drawn(model)
    monkeypatch.setattr(provenance, "fingerprint", lambda *entries: "another")
    done, said = together(model, folders)
    assert done == 2
    assert f"{folders[0]} was drawn by other code" in said


def test_a_damaged_block_is_refused_by_name(model_store, drawn, together):
    model = model_store()
    folders = drawn(model)
    images = folders[1] / "images.npz"
    images.write_bytes(images.read_bytes()[:-1])
    done, said = together(model, folders)
    assert done == 2
    assert f"{images} is not the file that" in said


def test_a_whole_result_is_no_block(model_store, command, together, tmp_path):
    model = model_store()
    assert cli.main(command(model, "whole")) == 0
    done, said = together(model, [tmp_path / "whole"])
    assert done == 2
    assert "made under another config: block was" in said


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (["0:5", "10:12"], "images 5 to 9 are missing"),
        (["5:10", "10:12"], "images 0 to 4 are missing"),
        (["0:5", "5:10"], "images 10 to 11 are missing"),
        (["0:10", "5:10", "10:12"], "images 5 to 9 are there twice"),
        (["0:5", "0:12"], "images 0 to 4 are there twice"),
    ],
)
def test_every_image_must_be_there_once(blocks, said, model_store, drawn, together):
    model = model_store()
    done, told = together(model, drawn(model, blocks))
    assert done == 2
    assert said in told


@pytest.mark.parametrize("block", ["3:10", "0:7", "5:11", "10:15"])
def test_a_block_of_other_batches_is_refused(block, model_store, command, capsys):
    assert cli.main([*command(model_store()), "--block", block]) == 2
    assert (
        f"--block {block} must begin and end at a multiple of sample.batch_size = 5, or end at "
        "sample.images = 12" in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    "flags", [["--block", "5"], ["--block", "5:5"], ["--block", "0:5", "--blocks", "a"]]
)
def test_what_is_no_block_is_refused(flags, command, tmp_path):
    with pytest.raises(SystemExit) as left:
        cli.main([*command(tmp_path), *flags])
    assert left.value.code == 2


def test_blocks_of_a_study_are_whole_batches(params):
    params["sample"]["batch_size"] = 64
    params["cluster"] = {"generations_per_job": 100}
    with pytest.raises(
        config.ConfigError,
        match=r"cluster\.generations_per_job = 100 is not a multiple of sample\.batch_size = 64",
    ):
        config.parse(params)
