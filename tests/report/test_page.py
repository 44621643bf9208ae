"""Pages are made by this interpreter, and a failure leaves the earlier page and says why."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import papermill
import pytest
from jupyter_core import paths

from afterimage import artifacts, cli
from afterimage.report.page import EARLIER, mark_earlier

FRESH = "print('fresh'.upper())"
"""A cell whose output is not in its source."""
HEAD = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: {name}
#     language: python
#     name: {name}
# ---

# %% tags=["parameters"]
results = ""
figures = ""

# %%
"""


def maker(folder: Path) -> Callable[..., int]:
    """Return a function that makes a page of one cell below ``folder``, and returns the exit status."""
    (folder / "tables").mkdir()
    (folder / "tables" / "run.json").write_text('{"outputs": {}}')
    (folder / "config.json").write_text('{"step": "report/page", "seed": 0, "settings": {}}')

    def run(cell: str, name: str = "python3") -> int:
        (folder / "page.py").write_text(HEAD.format(name=name) + cell)
        flags = {
            "notebook": folder / "page.py",
            "results": folder,
            "tables": folder / "tables",
            "config": folder / "config.json",
            "out": folder / "out",
        }
        words = [word for flag, path in flags.items() for word in (f"--{flag}", str(path))]
        return cli.main(["report", "page", *words])

    return run


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., int]:
    return maker(tmp_path)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "out" / "page.html"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished page that says "earlier page". Read only."""
    folder = tmp_path_factory.mktemp("finished")
    assert maker(folder)("print('earlier page')") == 0
    return folder / "out"


@pytest.fixture
def earlier_page(finished: Path, page: Path) -> None:
    """A copy of it where the next page will be."""
    shutil.copytree(finished, page.parent)


def kernel_spec(folder: Path, name: str) -> None:
    """Write a kernel that does not start."""
    (folder / "kernels" / name).mkdir(parents=True)
    spec = {
        "argv": ["/bin/false", "{connection_file}"],
        "display_name": "module",
        "language": "python",
    }
    (folder / "kernels" / name / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture
def startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every kernel run some code before anything else."""

    def write(code: str) -> None:
        (tmp_path / "site").mkdir()
        guard = "import os, pathlib, sys\nif 'ipykernel_launcher' in sys.orig_argv:\n"
        text = guard + "".join(f"    {line}\n" for line in code.splitlines())
        (tmp_path / "site" / "sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))

    return write


@pytest.mark.parametrize("variable", ["JUPYTER_PATH", "JUPYTER_DATA_DIR", "IPYTHONDIR"])
@pytest.mark.parametrize("name", ["python3", "cluster"])
def test_kernel_is_this_interpreter_whatever_others_are_installed(
    variable, name, make, page, tmp_path, monkeypatch
):
    """As a cluster's module, or an earlier ``ipython kernel install --user``, leaves them; also
    where the notebook names one."""
    kernel_spec(tmp_path / "other", name)
    monkeypatch.setenv(variable, str(tmp_path / "other"))
    assert make("import sys\nprint(sys.executable)", name) == 0
    assert sys.executable in page.read_text()
    assert os.environ[variable] == str(tmp_path / "other"), "the environment is as it was"


def test_kernel_is_this_interpreter_though_its_folder_has_another(
    make, page, tmp_path, monkeypatch
):
    """As ``ipython kernel install --sys-prefix`` of another interpreter leaves it."""
    kernel_spec(tmp_path / "other", "python3")
    folders = [str(tmp_path / "other"), *paths.ENV_JUPYTER_PATH]
    monkeypatch.setattr(paths, "ENV_JUPYTER_PATH", folders)
    assert make("import sys\nprint(sys.executable)") == 0
    assert sys.executable in page.read_text()


def test_notebook_without_a_head_is_run_too(make, page, monkeypatch):
    monkeypatch.setattr(f"{__name__}.HEAD", HEAD.split("# ---\n\n")[1])
    assert make(FRESH) == 0
    assert "FRESH" in page.read_text()


def test_page_is_laid_out_by_the_templates_of_this_environment(make, page, tmp_path, monkeypatch):
    template = tmp_path / "other" / "nbconvert" / "templates" / "lab"
    template.mkdir(parents=True)
    (template / "conf.json").write_text(
        '{"base_template": "base", "mimetypes": {"text/html": true}}'
    )
    (template / "index.html.j2").write_text("another installation's page")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    assert make(FRESH) == 0
    assert "another installation's page" not in page.read_text()
    assert "FRESH" in page.read_text()


def test_startup_files_of_the_user_are_not_run(make, page, tmp_path, monkeypatch):
    (tmp_path / "startup.py").write_text("mark = 'from the startup file'")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    assert make("print('mark' in globals(), 'there')") == 0
    assert "False there" in page.read_text()


def test_long_temporary_folder_leaves_room_for_sockets(make, page, tmp_path, monkeypatch):
    """Paths of sockets have at most 107 bytes."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert make(FRESH) == 0
    assert "FRESH" in page.read_text()


def test_sockets_are_files_of_this_page(make, page):
    cell = "from ipykernel.kernelapp import IPKernelApp\napp = IPKernelApp.instance()\nprint(app.transport, app.ip)"
    assert make(cell) == 0
    assert "ipc /" in page.read_text()


def test_kernel_that_dies_before_its_first_answer_is_started_once_more(
    make, page, tmp_path, startup, capfd
):
    startup(
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\nif not mark.exists():\n"
        "    mark.touch()\n    print('last words', file=sys.stderr)\n    os._exit(3)"
    )
    assert make(FRESH) == 0
    assert "FRESH" in page.read_text()
    log = capfd.readouterr().err
    assert "last words" in log
    assert "kernel 1 of 2: Kernel died before replying to kernel_info (exit status 3)" in log


def test_two_kernels_that_die_end_the_page_and_leave_the_earlier_one(
    make, page, earlier_page, tmp_path, startup, capfd
):
    startup(f"open({str(tmp_path / 'count')!r}, 'a').write('x')\nos.kill(os.getpid(), 9)")
    assert make(FRESH) == 2
    log = capfd.readouterr().err
    assert "afterimage: error: " in log
    assert log.count("(killed by SIGKILL)") == 4
    assert (tmp_path / "count").read_text() == "xx"
    assert "earlier page" in page.read_text()
    artifacts.check_store(page.parent)


def test_failing_cell_is_run_once_and_leaves_the_earlier_page(make, page, earlier_page, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        make(f"open({str(tmp_path / 'count')!r}, 'a').write('x')\n1 / 0")
    assert (tmp_path / "count").read_text() == "x"
    assert "earlier page" in page.read_text()
    artifacts.check_store(page.parent)


def test_kernel_that_dies_in_a_cell_is_not_started_again(make, page, earlier_page, tmp_path, capfd):
    """As under memory pressure."""
    cell = f"open({str(tmp_path / 'count')!r}, 'a').write('x')\nimport os\nos.kill(os.getpid(), {int(signal.SIGKILL)})"
    assert make(cell) == 2
    assert "the kernel died while it ran a cell (killed by SIGKILL)" in capfd.readouterr().err
    assert (tmp_path / "count").read_text() == "x"
    assert "earlier page" in page.read_text()


def test_page_of_an_earlier_run_is_marked_once(tmp_path):
    page, log = tmp_path / "pages" / "a.html", tmp_path / "logs" / "a b.log"
    assert not mark_earlier(page, log)
    page.parent.mkdir()
    page.write_text("<head><style>body {}</style></head><body class='x'>text<body></body>")
    for _ in range(2):
        assert mark_earlier(page, log)
        assert page.read_text().startswith(
            "<head><style>body {}</style></head><body class='x'><p style="
        )
        assert page.read_text().count(EARLIER) == 1
        assert "href='../logs/a b.log'" in page.read_text()
    page.write_text("<body>new")
    (page.parent / "run.json").touch()
    assert not mark_earlier(page, log)
    assert page.read_text() == "<body>new"
