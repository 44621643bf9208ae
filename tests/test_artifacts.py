"""Stores: whole or absent, and never opened as something that they are not."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from afterimage import artifacts, provenance, scratch
from afterimage.artifacts import ArtifactError
from afterimage.images import Images, load_images

CONFIG = {"step": "data/split", "arm": None, "replicate": None, "seed": 1, "settings": {"a": 1}}


def some_images(n=5):
    rng = np.random.default_rng(0)
    return Images.of(rng.integers(0, 256, (n, 4, 4, 1), np.uint8))


def make(out, config=CONFIG, **inputs):
    with artifacts.step(config, out, inputs, ("afterimage.seeds",)) as step:
        some_images().save(step.folder / "images.npz")
        step.metric("count", 5)
        step.note(rows=5)
    return out


def test_store_describes_itself(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("x")
    out = make(tmp_path / "out", source=source)
    run = artifacts.read_run(out)
    assert run["config"] == CONFIG
    assert run["outputs"].keys() == {"images.npz", "metrics.jsonl"}
    assert run["inputs"]["source"]["sha256"] == artifacts.sha256(source)
    assert run["code_sha256"] == provenance.fingerprint("afterimage.seeds")
    assert run["facts"] == {"rows": 5}
    assert json.loads((out / "metrics.jsonl").read_text()) == {
        "name": "count",
        "step": 0,
        "value": 5.0,
    }
    assert artifacts.check_store(out, CONFIG) == run


def test_images_round_trip_without_pickle(tmp_path):
    images = Images.of(
        some_images(3).pixels,
        ids=np.array(["a", "b", "ü"]),
        labels=[1, 0, 2],
        official_test=[True, False, True],
        captions=["", "a peacock", "ü, in 1 word"],
        caption_sources=["a", "ü", "ü"],
    )
    images.save(tmp_path / "x.npz")
    again = load_images(tmp_path / "x.npz", check=False)
    names = ("pixels", "ids", "labels", "sources", "official_test", "captions", "caption_sources")
    for name in names:
        np.testing.assert_array_equal(getattr(again, name), getattr(images, name))
    assert again.take(np.array([1, 0])).caption_sources.tolist() == ["ü", "a"]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_images_are_mapped_where_they_can_be(tmp_path, monkeypatch, write, order):
    images = some_images(5)
    images.save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        arrays = dict(arrays)
    write(tmp_path / "x.npz", **arrays | {"images": np.asarray(images.pixels, order=order)})
    before = (tmp_path / "x.npz").read_bytes()
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 0)
    again = load_images(tmp_path / "x.npz", check=False)
    mapped = write is np.savez and order == "C"
    assert (getattr(again.pixels, "filename", None) is not None) == mapped
    np.testing.assert_array_equal(again.pixels, images.pixels)
    some = again.take(np.array([4, 0]))
    np.testing.assert_array_equal(some.pixels, images.pixels[[4, 0]])
    some.save(tmp_path / "some.npz")
    np.testing.assert_array_equal(
        load_images(tmp_path / "some.npz", check=False).pixels, images.pixels[[4, 0]]
    )
    again.pixels[:] = 0  # a private copy
    assert (tmp_path / "x.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("pixels", "ids", "message"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), None, "must be uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), None, "must be uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), [1, 1], "not unique"),
        (np.zeros((2, 4, 4, 1), np.uint8), [1], "ids has shape"),
    ],
)
def test_wrong_images_are_refused(pixels, ids, message):
    with pytest.raises(ArtifactError, match=message):
        Images.of(pixels, ids=None if ids is None else np.array(ids))


def test_object_arrays_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "bad.npz", images=np.array([{}], dtype=object))
    with pytest.raises(ArtifactError, match="cannot be read as an image set"):
        load_images(tmp_path / "bad.npz", check=False)


@pytest.mark.parametrize("harm", ["truncate", "change", "delete"])
def test_harmed_file_is_named(tmp_path, harm):
    out = make(tmp_path / "out")
    file = out / "images.npz"
    if harm == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif harm == "change":
        some_images(4).save(file)
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match=r"images\.npz is (not the file|missing)"):
        load_images(file)
    with pytest.raises(ArtifactError, match=r"images\.npz"):
        artifacts.check_store(out)


def test_other_config_is_refused_with_the_key_that_differs(tmp_path):
    out = make(tmp_path / "out")
    other = CONFIG | {"settings": {"a": 2}}
    with pytest.raises(ArtifactError, match=r"another config: settings\.a was 1, is now 2"):
        artifacts.check_store(out, other)


def test_config_of_another_step_is_refused(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ArtifactError, match="config of step 'data/split', not of 'train'"):
        artifacts.read_config(tmp_path / "c.json", "train")


def test_failure_keeps_the_old_result(tmp_path):
    out = make(tmp_path / "out")
    before = artifacts.sha256(out), (out / "run.json").read_bytes()

    def fill_the_disk():
        with artifacts.step(CONFIG, out, {}, ("afterimage.seeds",)) as step:
            (step.folder / "images.npz").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill_the_disk()
    assert (artifacts.sha256(out), (out / "run.json").read_bytes()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def kept(out, config=CONFIG, **inputs):
    """Tell whether a step that may keep its result does."""
    with artifacts.keeping_results():
        try:
            make(out, config, **inputs)
        except artifacts.UpToDate:
            return True
    return False


def test_an_up_to_date_result_is_kept_on_request_alone(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("x")
    out = tmp_path / "out"
    assert not kept(out, source=source)
    before = artifacts.read_run(out)
    assert kept(out, source=source)
    (out / "run.json").unlink()  # as Snakemake does before a job
    assert kept(out, source=source)
    assert artifacts.read_run(out) == before
    make(out, source=source)
    assert not kept(out, source=source)


def test_facts_of_a_call_are_recorded_also_where_its_result_is_kept(tmp_path):
    out = tmp_path / "out"

    def call(*parts):
        with artifacts.step(CONFIG, out, {}, ("afterimage.seeds",), parts=list(parts)) as step:
            step.note(images=3)

    with artifacts.keeping_results():
        call("0-2", "2-3")
        first = artifacts.read_run(out)
        with pytest.raises(artifacts.UpToDate):
            call()
    assert first["facts"] == {"parts": ["0-2", "2-3"], "images": 3}
    facts = {"parts": [], "images": 3}
    for record in (artifacts.RUN, artifacts.RECORD):
        assert artifacts.read_run(out, record) == first | {"facts": facts}


def test_what_a_process_finished_before_it_failed_is_kept_out_of_snakemakes_sight(tmp_path):
    """Snakemake removes all results of a job that failed, or writes the earlier versions back."""
    first, second = tmp_path / "a" / "first", tmp_path / "b" / "second"

    def process(*configs, fails=False):
        with artifacts.keeping_results():
            for out, config in zip((first, second), configs, strict=False):
                try:
                    make(out, config)
                except artifacts.UpToDate:
                    told.append(out.name)
            if fails:
                raise RuntimeError("a later step")

    other, told = CONFIG | {"seed": 2}, []
    with pytest.raises(RuntimeError):
        process(CONFIG, fails=True)
    made = artifacts.read_run(first)
    shutil.rmtree(first)
    with pytest.raises(RuntimeError):  # once more: what was put back is still there
        process(CONFIG, fails=True)
    shutil.rmtree(first)
    process(CONFIG, CONFIG)
    assert told == ["first", "first"]
    assert artifacts.check_store(first) == made
    assert [path.name for path in (*first.parent.iterdir(), *second.parent.iterdir())] == [
        "first",
        "second",
    ]
    with pytest.raises(RuntimeError):
        process(other, fails=True)
    (first / artifacts.RECORD).write_text(json.dumps(made))
    process(other, CONFIG)
    assert told == ["first", "first", "first", "second"]
    assert artifacts.check_store(first)["config"] == other


@pytest.mark.parametrize(
    "change",
    [
        lambda out, source: source.write_text("y"),
        lambda out, source: (out / "metrics.jsonl").write_text("{}"),
        lambda out, source: (out / "images.npz").unlink(),
        lambda out, source: (out / "foreign.txt").write_text(""),
        lambda out, source: (out / ".run.json").unlink(),
    ],
    ids=["input", "content", "missing", "foreign", "unrecorded"],
)
def test_a_result_that_is_not_up_to_date_is_made_again(tmp_path, change):
    source = tmp_path / "in.txt"
    source.write_text("x")
    out = tmp_path / "out"
    assert not kept(out, source=source)
    change(out, source)
    assert not kept(out, source=source)
    assert artifacts.check_store(out)
    assert kept(out, source=source)


def test_a_result_of_another_config_input_or_code_is_made_again(tmp_path, monkeypatch):
    source, other = tmp_path / "in.txt", tmp_path / "other.txt"
    source.write_text("x")
    other.write_text("x")
    out = tmp_path / "out"
    assert not kept(out, source=source)
    assert not kept(out, CONFIG | {"seed": 2}, source=source)
    assert not kept(out, CONFIG, source=source)
    assert not kept(out, CONFIG, source=other)
    assert not kept(out, CONFIG, source=other, second=source)
    assert kept(out, CONFIG, source=other, second=source)
    monkeypatch.setattr(provenance, "fingerprint", lambda *entries: "other code")
    assert not kept(out, CONFIG, source=other, second=source)


def test_start_up_is_what_a_process_spent_before_its_first_step(tmp_path, monkeypatch):
    clock = iter([3.0, 5.0, 5.5, 7.0])
    monkeypatch.setattr(artifacts, "cpu_seconds", lambda: next(clock))
    monkeypatch.setattr(artifacts.Step, "accounted", 0.0)
    runs = [artifacts.read_run(make(tmp_path / name)) for name in ("first", "second")]
    assert [(run["startup_cpu_seconds"], run["cpu_seconds"]) for run in runs] == [
        (3.0, 2.0),
        (0.5, 1.5),
    ]


def test_killed_step_leaves_nothing_that_looks_finished(tmp_path):
    code = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from afterimage import artifacts
        with artifacts.step({CONFIG!r}, Path({str(tmp_path)!r}) / "out", {{}}, ("afterimage.seeds",)) as step:
            (step.folder / "images.npz").write_bytes(b"half")
            Path({str(tmp_path)!r}, "started").touch()
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out")
    artifacts.check_store(tmp_path / "out", CONFIG)
    assert not list(tmp_path.glob(".out*"))


def test_really_full_disk_keeps_the_old_file(tmp_path):
    file = tmp_path / "value.json"
    artifacts.write_json(file, {"old": True})
    code = textwrap.dedent(
        f"""
        import resource, signal
        from pathlib import Path
        from afterimage import artifacts
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        artifacts.write_json(Path({str(file)!r}), {{"new": "x" * 1000}})
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert json.loads(file.read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["value.json"]


def test_folder_hash_sees_names_and_contents(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = artifacts.sha256(folder)
    (folder / "a").rename(folder / "b")
    second = artifacts.sha256(folder)
    (folder / "b").write_text("2")
    assert len({first, second, artifacts.sha256(folder)}) == 3


def test_fingerprint_follows_imports_but_not_what_is_recorded_elsewhere():
    modules = provenance.modules_of("afterimage.diffusion.sample")
    assert {"afterimage.artifacts", "afterimage.provenance"} < set(modules)
    assert not [
        module for module in modules if module.startswith(("afterimage.config", "afterimage.plan"))
    ]
    assert provenance.fingerprint("afterimage.seeds") != provenance.fingerprint("afterimage.images")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules ``afterimage.<name>`` and return the fingerprint of ``afterimage.a``."""
    folder = tmp_path / "afterimage"
    folder.mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", folder)

    def forget() -> None:
        for known in (provenance._tree, provenance._imports, provenance._sha256):
            known.cache_clear()

    def fingerprint(**modules: str) -> str:
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        forget()
        return provenance.fingerprint("afterimage.a")

    yield fingerprint
    forget()


def test_fingerprint_changes_with_the_code_it_covers(package):
    first = package(a="from afterimage import b\n", b="x = 1\n", c="y = 1\n")
    assert package(c="y = 2\n") == first
    assert package(b="x = 2\n") != first


PLAIN = """
def area(width, height=2.0):
    return {"area": width * height, "sides": [width, height]}
"""


@pytest.mark.parametrize(
    "text",
    [
        '"""A module."""\n# A comment.' + PLAIN,
        PLAIN.replace(":\n", ':\n    """Return the area."""\n\n', 1),
        PLAIN.replace('"', "'"),
        PLAIN.replace("[width, height]", "[\n        width,  # first\n        height,\n    ]"),
        PLAIN.replace("width * height", "(width * height)"),
        PLAIN.replace("    ", "  "),
        PLAIN + '"""What a constant means."""\n',
    ],
)
def test_prose_and_formatting_change_no_fingerprint(package, text):
    assert package(a=text) == package(a=PLAIN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "2"),
        ("2.0", "True"),
        ("width * height", "width + height"),
        ('"area"', '"Area"'),
        ('"area"', 'b"area"'),
        ("[width, height]", "(width, height)"),
        ("return {", "x = {"),
        ("height=2.0", "*, height=2.0"),
        ("return", "'a string that is no docstring'.title()\n    return"),
    ],
)
def test_every_change_of_code_changes_the_fingerprint(package, old, new):
    assert old in PLAIN
    assert package(a=PLAIN.replace(old, new, 1)) != package(a=PLAIN)


def test_no_version_of_python_changes_the_code():
    """As Python 3.11, 3.12.1 (which has an empty piece in this f-string) and 3.13 read it."""
    assert provenance.canonical(ast.parse("print(f'{x:<{n}}', u'\xad')")) == (
        "Module(body=[Expr(value=Call(func=Name(id='print',ctx=Load()),args=[JoinedStr("
        "FormattedValue(value=Name(id='x',ctx=Load()),conversion=-1,format_spec=JoinedStr(str:'<',"
        "FormattedValue(value=Name(id='n',ctx=Load()),conversion=-1)))),str:'\\xad']))])"
    )


@pytest.mark.parametrize(
    "path", sorted(provenance.PACKAGE.rglob("*.py")), ids=lambda path: path.stem
)
def test_the_text_of_every_module_can_be_written_anew(path):
    tree = ast.parse(path.read_text())
    assert provenance.canonical(ast.parse(ast.unparse(tree))) == provenance.canonical(tree)


def test_published_tables_that_a_study_rewrites_are_no_change_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    files = [tmp_path / "src" / "code.py", tmp_path / "results" / "default" / "table.csv"]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    files[1].write_text("2\n")
    assert provenance.environment()["git_dirty"] is False
    files[0].write_text("2\n")
    assert provenance.environment()["git_dirty"] is True
