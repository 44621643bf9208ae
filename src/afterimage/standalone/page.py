"""What the pages of commands share: the template with the style, and figures as they go on a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

Figure = tuple[str, str, str]
"""Title, explanation, and PNG (base64)."""


def render(template: str, **values: Any) -> str:
    """Return the page of a template of this folder, which extends ``layout.html``."""
    environment = Environment(
        loader=PackageLoader("afterimage.standalone", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def settings(values: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Return the rows of a table of settings: those that have a plain value."""
    return [
        (name.replace("_", " "), str(value))
        for name, value in values
        if value is not None and not isinstance(value, dict)
    ]


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def finish(figure: Any, title: str, text: str) -> Figure:
    """Return a drawn figure as it goes on the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return title, text, base64.b64encode(png.getvalue()).decode()
