"""A tiny run that every training test starts from: 13 digits of 8x8 pixels, a net of two levels."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from pydantic import TypeAdapter
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from afterimage import artifacts, config, seeds
from afterimage.config import AnyArm, Diffusion, Model, Train
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.texts import Texts
from afterimage.images import Images
from afterimage.methods import baseline
from afterimage.plan.resolved import resolve
from afterimage.provenance import digest
from afterimage.training.checkpoint import Store
from afterimage.training.job import TrainingRun, accelerator_for
from afterimage.training.learner import Learner

MODEL = {"channels": [8, 16], "attention": [False, True], "layers_per_block": 1, "norm_groups": 4}
TRAIN = {
    "updates": 7,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "ema": 0.8,
    "checkpoint_every": 3,
    "log_every": 2,
}


CAPTIONS = ["a Red circle", "a red square", "two redder squares", "a blue square", "a blue dot"]
"""Those of ``captioned``."""

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
"""The caption of each digit."""


def embedded() -> Texts:
    """Made-up embeddings of these captions and of the text ``digit``."""
    generator = torch.Generator().manual_seed(0)
    texts = [*WORDS, "digit"]
    embeddings = torch.randn((len(texts), 4, 12), generator=generator)
    return Texts({text: row for row, text in enumerate(texts)}, embeddings, torch.zeros(4, 12))


ERASE = {"method": "erasediff"}
UNLEARNERS = {
    "erasediff": ERASE,
    "its inner steps": ERASE | {"barrier": "gap", "inner_updates": 2},
    "its released targets": ERASE | {"target": "released_relabel"},
    "its weight by the angle": ERASE | {"barrier": "cosine", "target": "uniform"},
    "its uniform targets": ERASE | {"target": "released_uniform", "forget_timesteps": "remain"},
    "salun": {"method": "salun", "saliency_samples": 8},
    "selective_amnesia": {
        "method": "selective_amnesia",
        "condition": "label",
        "replay_images": 20,
        "fisher_samples": 2,
        "fisher_timesteps": 2,
    },
    "gradient_ascent": {"method": "gradient_ascent", "remain": 0.5},
    "siss": {"method": "siss", "norm_ratio": 0.1},
    "esd": {"method": "esd", "inputs": "noised"},
    "esd, sampled": {"method": "esd", "steps": 3},
}
"""Some arms that unlearn, one of each method and the branches of EraseDiff."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums come in one order; accelerate forgets the precision of the test before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits: uint8 pixels, (1797, 8, 8, 1), and int64 labels."""
    found = load_digits()
    return np.round(found.images * 255 / 16).astype(np.uint8)[..., None], found.target.astype(
        np.int64
    )


@pytest.fixture
def make_job(digits):
    """Return a function that builds a job in a state folder; keywords lie over ``TRAIN``."""

    def make(
        state: Path,
        condition: str = "none",
        flips: bool = False,
        images: int = 13,
        dropout: float = 0.0,
        base: Path | None = None,
        arm: dict | None = None,
        forgotten: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        surrogate: str | None = None,
        **train,
    ) -> TrainingRun:
        settings = Train.model_validate(TRAIN | train)
        own = TypeAdapter(AnyArm).validate_python(
            {"method": "baseline", "condition": condition} | (arm or {})
        )
        model = Model.model_validate(MODEL | {"dropout": dropout})
        pixels, labels = digits[0][:images], digits[1][:images]
        classes = 10 if condition == "label" else None
        texts = embedded() if condition == "text" else None
        width = None if texts is None else texts.width
        scheduler = build_scheduler(Diffusion())
        identity = {
            "train": settings.model_dump(),
            "arm": own.model_dump(),
            "flips": flips,
            "dropout": dropout,
        }

        def build(blocks, stream):
            return build_unet(
                model,
                (8, 8, 1),
                classes,
                seed=seeds.derive(1, stream),
                blocks=blocks,
                text_width=width,
            )

        return TrainingRun(
            seed=5,
            path=("train", "test", 0),
            arm=own,
            train=settings,
            updates=settings.updates or -(-settings.epochs * images // settings.batch_size),
            net=build_unet(model, (8, 8, 1), classes, seed=1, blocks=own.rau_net, text_width=width),
            build=build,
            scheduler=scheduler,
            task=Pixels(
                pixels,
                scheduler,
                labels if classes else None,
                classes or 0,
                settings.label_dropout,
                flips,
                None if texts is None else (texts, texts.rows(np.array(WORDS)[labels])),
                None if texts is None else texts.embedding(surrogate),
            ),
            sources=np.arange(images) if sources is None else sources,
            labels=labels,
            forgotten=np.zeros(images, bool) if forgotten is None else forgotten,
            base=base,
            accelerator=accelerator_for(settings),
            store=Store(state, identity),
        )

    return make


@pytest.fixture
def unlearner(make_job, digits, tmp_path_factory):
    """Return a function that builds a job of an unlearning method on a base of a few updates: by
    default, forget the zeros.

    A base is trained once for all tests.
    """

    def make(
        state: Path,
        arm: dict,
        condition: str = "label",
        images: int = 40,
        dropout: float = 0.0,
        forgotten: np.ndarray | None = None,
        surrogate: str | None = None,
        **train,
    ) -> TrainingRun:
        shared = {"condition": condition, "images": images, "dropout": dropout}
        blocks = {"rau_net": arm.get("rau_net")}
        base = tmp_path_factory.getbasetemp() / f"base-{digest(shared | blocks)}"
        if not base.exists():
            job = make_job(base.with_suffix(".state"), arm=blocks, batch_size=8, **shared)
            save_pipeline(baseline.train(job).average, job.scheduler, base)
            job.store.remove()
        chosen = digits[1][:images] == 0 if forgotten is None else forgotten
        own = {"base": "base", "forget": "zeros"} | arm
        return make_job(
            state,
            base=base,
            arm=own,
            forgotten=chosen,
            surrogate=surrogate,
            **shared,
            **train,
        )

    return make


@pytest.fixture
def update_of(monkeypatch):
    """Return a function that gives the ``update`` that a method passes to the loop."""

    def get(train, job):
        updates = []

        def capture(self, update, *_):
            updates.append(update)
            raise StopIteration

        with monkeypatch.context() as patched:
            patched.setattr(type(job), "run", capture)
            with pytest.raises(StopIteration):
                train(job)
        return updates[0]

    return get


@pytest.fixture
def study(params, digits, tmp_path):
    """Return a function that writes a training store and a resolved config, and gives the command
    line of the run."""

    def make(
        arm: dict | None = None,
        folder: Path = tmp_path,
        out: str = "out",
        images: int = 13,
        forget: dict | None = None,
        model: dict | None = None,
        **train,
    ) -> list[str]:
        own = {"method": "baseline"} | (arm or {})
        params.update(
            model=model or MODEL,
            train=TRAIN | train,
            arms={"plain": own},
            forget=forget or {},
            loyal_selection=None,
        )
        for other in (own.get("base"), own.get("matched_to", {}).get("arm")):
            if other is not None:
                params["arms"][other] = {
                    "method": "baseline",
                    "condition": own.get("condition", "none"),
                }
        if not (folder / "split").exists():
            resolved = {
                "step": "data/split",
                "arm": None,
                "replicate": None,
                "seed": 1,
                "settings": {},
            }
            with artifacts.step(resolved, folder / "split", {}, ("afterimage.seeds",)) as step:
                sources = np.arange(images) // 2
                Images.of(digits[0][sources], labels=digits[1][sources], sources=sources).save(
                    step.folder / "train.npz"
                )
        file = folder / f"{out}.json"
        file.write_text(json.dumps(resolve(config.parse(params), "train", "plain", 0)))
        command = [
            "train",
            "run",
            "--train",
            str(folder / "split" / "train.npz"),
            "--config",
            str(file),
        ]
        return [*command, "--state", str(folder / "state"), "--out", str(folder / out)]

    return make


@pytest.fixture
def captioned(study, params, tmp_path):
    """Return a function that gives the command line of a text arm: ten images, two of each of
    ``CAPTIONS``, with their embeddings stored."""
    texts = [*CAPTIONS, "a shape"]
    resolved = {"step": "data/encode", "arm": None, "replicate": None, "seed": 1, "settings": {}}
    with artifacts.step(resolved, tmp_path / "encode", {}, ("afterimage.seeds",)) as step:
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn((6, 4, 16), generator=generator)
        tensors = {"embeddings": embeddings, "null": torch.zeros(4, 16)}
        save_file(tensors, step.folder / "texts.safetensors")
        artifacts.write_json(step.folder / "captions.json", texts)

    def make(
        arm: dict, forget: dict, pixels: np.ndarray, out: str, folder: str = "split", **more
    ) -> list[str]:
        resolved = {"step": "data/split", "arm": None, "replicate": None, "seed": 1, "settings": {}}
        if not (tmp_path / folder).exists():
            with artifacts.step(resolved, tmp_path / folder, {}, ("afterimage.seeds",)) as step:
                Images.of(pixels, sources=np.arange(10) // 2, captions=np.repeat(CAPTIONS, 2)).save(
                    step.folder / "train.npz"
                )
        source = {"kind": "parquet", "path": "a.parquet", "caption_column": "text"}
        params["data"] |= {"source": source}
        params["text"] = {"width": 16}
        command = study(
            {"condition": "text"} | arm, out=out, forget=forget, **{"updates": 2} | more
        )
        command[command.index("--train") + 1] = str(tmp_path / folder / "train.npz")
        return [*command, "--texts", str(tmp_path / "encode")]

    return make


@pytest.fixture(scope="session")
def curves():
    """Return a function that reads training curves without the only value that differs between
    equal runs."""

    def read(path: Path) -> list[dict]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in rows if row["name"] != "images_per_second"]

    return read


@pytest.fixture(scope="session")
def series():
    """Return a function that reads training curves as name -> values in order."""

    def read(path: Path) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for row in map(json.loads, path.read_text().splitlines()):
            found.setdefault(row["name"], []).append(row["value"])
        return found

    return read


@pytest.fixture
def stop_in_step(monkeypatch):
    """Return a function that has the process send itself SIGTERM in the ``n``-th optimiser step
    from now (from 0), once."""
    original = Learner.step

    def arrange(n: int) -> None:
        calls = []

        def step(self, s):
            calls.append(s)
            if len(calls) == n + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, s)

        monkeypatch.setattr(Learner, "step", step)

    return arrange


@pytest.fixture
def same_bits_after_stops(stop_in_step, curves):
    """Return a function that stops a method in each of some optimiser steps, starts it again, and
    compares with an unstopped run."""

    def check(train, job, steps: range) -> None:
        """``job(name)`` makes the same run in a state folder of its own."""
        first = job("whole")
        whole = train(first)
        for s in steps:
            stop_in_step(s)
            with pytest.raises(SystemExit) as left:
                train(job(str(s)))
            assert left.value.code == 75
            again = job(str(s))
            resumed = train(again)
            assert resumed.progress.resumed_at == [s + 1]
            assert resumed.spent == whole.spent
            for one, other in ((whole.raw, resumed.raw), (whole.average, resumed.average)):
                states = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
                assert all(name == its and torch.equal(a, b) for (name, a), (its, b) in states)
            assert curves(again.store.curves) == curves(first.store.curves)

    return check


@pytest.fixture(scope="session")
def golden():
    """Return a function that compares numbers with those on record in ``tests/golden``, and returns
    these.

    With ``AFTERIMAGE_WRITE_GOLDEN`` set the numbers are put on record first.
    """

    def check(
        name: str, found: dict[str, list[float]], rel: float = 1e-5
    ) -> dict[str, list[float]]:
        path = Path(__file__).parent.parent / "golden" / f"{name}.json"
        if os.environ.get("AFTERIMAGE_WRITE_GOLDEN"):
            path.write_text(json.dumps(found, indent=2) + "\n")
        wanted = json.loads(path.read_text())
        assert found.keys() == wanted.keys()
        for series, values in wanted.items():
            assert found[series] == pytest.approx(values, rel=rel), series
        return wanted

    return check


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that has the process send itself a signal in the middle of update ``s``
    (from 0), once."""
    original = Learner.update

    def arrange(s: int, number: int = signal.SIGTERM, times: int = 1) -> None:
        def update(self, at, batch, objective):
            if at == s:
                monkeypatch.setattr(Learner, "update", original)
                for _ in range(times):
                    os.kill(os.getpid(), number)
            return original(self, at, batch, objective)

        monkeypatch.setattr(Learner, "update", update)

    return arrange


STOPPED_ONCE = """
import os, pkgutil, shutil, signal, sys
from pathlib import Path
import torch
from afterimage import cli
from afterimage.training import distributed

torch.set_num_threads(1)
owner, _, name = sys.argv[1].rpartition(".")
owner, kept, command = pkgutil.resolve_name(owner), Path(sys.argv[2]), sys.argv[3:]
original = getattr(owner, name)

def signalled(self, s):
    if s == 3 and distributed.index() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return original(self, s)

setattr(owner, name, signalled)
try:
    cli.main(command)
except SystemExit as left:
    assert left.code == 75, left.code
else:
    raise AssertionError("was not stopped")
if distributed.first():
    shutil.copytree(command[command.index("--state") + 1], kept)
distributed.wait()
setattr(owner, name, original)
sys.exit(cli.main(command))
"""


@pytest.fixture
def in_two_processes(tmp_path):
    """Return a function that trains in two processes, stopped once and then finished, and returns
    what they wrote to standard error.

    It takes the method (module:Class.method) whose call for update 3 sends a signal to the second
    process, and, as arguments, the folder that gets the state saved then and the command.
    """

    def run(method: str, arguments: list[str]) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
        }
        script = tmp_path / "process.py"
        script.write_text(STOPPED_ONCE)
        started = [
            subprocess.Popen(
                [sys.executable, str(script), method, *arguments],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=120)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
        return errors

    return run
