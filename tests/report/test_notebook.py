"""Tables are shown as they are meant: escaped, shaded, and the same bytes every time."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from matplotlib.figure import Figure

from afterimage.report import format
from afterimage.report.notebook import GREEN, GREY, Notebook


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A notebook, and what it displayed."""
    displayed: list = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    return Notebook(tmp_path, tmp_path / "figures", 0.9), displayed


def body(table: str) -> list[list[str]]:
    """The cells of a table's rows, as HTML."""
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_text_is_escaped_and_html_is_not(shown):
    book, displayed = shown
    book.show([{"a<b": "<script>", "c": format.bold("&")}, {"a<b": 1, "c": float("nan")}])
    table = displayed[0].data
    assert body(table) == [["&lt;script&gt;", "<b>&amp;</b>"], ["1", ""]]
    assert "a&lt;b" in table
    assert "a<b" not in table


@pytest.mark.parametrize("shade", [GREY, GREEN])
def test_rows_are_shaded_by_their_place_whatever_the_index(shown, shade):
    book, displayed = shown
    book.show(pd.DataFrame({"a": [1, 2]}, index=[7, 0]), shaded=[1], shade=shade)
    table = displayed[0].data
    style = {
        row: re.search(rf"#T_1_row{row}_col0[^{{]*{{(.*?)}}", table, re.DOTALL)[1] for row in (0, 1)
    }
    assert f"background: {shade}" in style[1]
    assert "background: white" in style[0]


def test_a_page_is_the_same_every_time_and_its_tables_do_not_share_styles(tmp_path, monkeypatch):
    displayed: list = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    for _ in range(2):
        book = Notebook(tmp_path, tmp_path / "figures", 0.9)
        book.show([{"a": 1}])
        book.show([{"a": 1}], shaded=[0])
    texts = [one.data for one in displayed]
    assert texts[:2] == texts[2:]
    assert 'id="T_1"' in texts[0]
    assert 'id="T_2"' in texts[1]


def test_an_empty_text_shows_nothing(shown):
    book, displayed = shown
    book.say("")
    book.say("text")
    assert [one.data for one in displayed] == ["text"]


def test_a_figure_is_kept_as_the_same_bytes(shown):
    book, displayed = shown
    contents = []
    for _ in range(2):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        book.keep(figure, "a")
        contents.append((book.figures / "a.png").read_bytes())
    assert contents[0] == contents[1]
    assert len(displayed) == 2
