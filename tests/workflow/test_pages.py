"""A page that cannot be rendered leaves the earlier one, which says so, and is rendered again
at the next run."""

import pytest

from afterimage.report.page import EARLIER

pytestmark = pytest.mark.slow


def test_earlier_page_survives_failed_runs_and_says_so(workspace):
    store = workspace.results / "report" / "pages" / "extraction"
    page, notebook = store / "extraction.html", workspace.folder / "notebooks" / "extraction.py"
    before, source = page.read_text(), notebook.read_text()
    assert EARLIER not in before
    notebook.write_text(source + "\n# %%\nraise ValueError('broken')\n")
    for _ in range(2):
        done = workspace.snakemake("--", "all", check=False)
        assert done.returncode != 0
        assert "extraction.html is of an earlier run, and says so" in done.stdout + done.stderr
        assert "comparison.html is of an earlier run" not in done.stdout + done.stderr
        text = page.read_text()
        assert text.count(EARLIER) == 1
        start, end = (
            text.index("<p style", text.index("<body")),
            text.index("</p>", text.index(EARLIER)) + len("</p>"),
        )
        assert text[:start] + text[end:] == before
        assert "ValueError: broken" in (store / "../../../logs/report/extraction.log").read_text()
        assert not (store / "run.json").exists(), "no store that could be taken for a whole one"
        assert workspace.planned() == {"page": 1, "mlflow": 1}
    assert (
        "report/pages/extraction: has no run.json"
        in workspace.run("afterimage", "verify", check=False).stdout
    )
    notebook.write_text(source)
    workspace.snakemake("--", "all")
    assert EARLIER not in page.read_text()
    assert workspace.planned() == {}
    assert workspace.run("afterimage", "verify").returncode == 0
