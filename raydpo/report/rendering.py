"""Pages that need nothing beside them: templates made text, figures made pictures that stand in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Picture:
    """A figure as a page shows it."""

    name: str  # also its file name under figures/
    alt: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture itself, so that the page loads nothing."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def make_picture(name: str, alt: str, figure: Figure) -> Picture:
    """Draw a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return Picture(name, alt, buffer.getvalue())


def render(template: str, **values: Any) -> str:
    """The page that a template makes of the values."""
    # Sampled text is hostile input: everything is escaped, and a name that is missing fails instead of showing nothing.
    environment = Environment(
        loader=PackageLoader("raydpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
