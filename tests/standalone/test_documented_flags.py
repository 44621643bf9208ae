"""docs/auditing.md names flags that the audit has, and all flags of drawing."""

from __future__ import annotations

import argparse
import re

import pytest

from afterimage.standalone import audit, drawing_flags


@pytest.fixture(scope="module")
def page(root):
    return set(re.findall(r"--[a-z][a-z0-9-]*", (root / "docs" / "auditing.md").read_text()))


def flags(declare):
    parser = argparse.ArgumentParser(add_help=False)
    declare(parser)
    return {option for action in parser._actions for option in action.option_strings}


def test_the_page_names_no_flag_that_is_not_there(page):
    assert page - flags(audit.arguments) == {
        "--help",
        "--queries",
    }  # of every command, of attribute


def test_the_page_names_every_flag_of_drawing(page):
    assert flags(drawing_flags.arguments) <= page


def test_defaults_on_the_page_are_those_of_the_code(root):
    text = " ".join((root / "docs" / "auditing.md").read_text().split())
    assert f"at most {drawing_flags.DEFAULT:,} images" in text
    assert f"`--dtype` ({drawing_flags.DTYPES[0]} by default)" in text


def test_the_number_of_classes_on_the_page_is_that_of_the_tests(root):
    from . import tiny_pipelines as tiny

    classes = {name.split()[0] for name in tiny.PIPELINES}
    assert f"each of {len(classes)} classes" in (root / "docs" / "auditing.md").read_text()
