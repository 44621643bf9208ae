"""Notebooks are documents: prose, and short cells that show what tested functions compute."""

from __future__ import annotations

import ast
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LONGEST_CELL = 20
WIDEST_LINE = 100


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> Path:
    return request.param


def code(notebook: Path) -> list[str]:
    cells = jupytext.read(notebook).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 7


def test_cells_are_short(notebook):
    cells = jupytext.read(notebook).cells
    longest = max((len(cell.source.splitlines()), cell.source) for cell in cells)
    assert longest[0] <= LONGEST_CELL, longest[1]
    assert max(map(len, notebook.read_text().splitlines())) <= WIDEST_LINE


def test_nothing_is_defined_computed_or_formatted_in_a_cell(notebook):
    """Functions are where tests reach them; numbers get their digits in ``report.format``."""
    computing = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.BinOp)
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell)):
            assert not isinstance(node, computing), ast.unparse(node)
            assert not getattr(node, "format_spec", None), ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert node.module.startswith("afterimage.report"), ast.unparse(node)


def test_narrative_outweighs_code(notebook):
    cells = jupytext.read(notebook).cells
    words = {
        kind: sum(len(cell.source.split()) for cell in cells if cell.cell_type == kind)
        for kind in ("markdown", "code")
    }
    assert words["markdown"] > words["code"], words


def test_a_page_has_a_module_of_its_name(notebook):
    assert (ROOT / "src/afterimage/report/pages" / notebook.name).is_file()
    assert f"from afterimage.report.pages.{notebook.stem} import" in notebook.read_text()
