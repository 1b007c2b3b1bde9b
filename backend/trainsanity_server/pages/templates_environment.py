"""How templates are found and filled; every value is escaped."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainsanity_server.pages import formats, front_end
from trainsanity_server.pages.sparkline import sparkline
from trainsanity_server.pages.witness_words import witness_words


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(front_end.FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        formats.figure,
        formats.span,
        formats.moment,
        formats.iso,
        formats.percent,
        formats.prose,
        formats.breakable,
        formats.count,
        anchor,
        query,
    ):
        made.filters[function.__name__] = function
    made.globals.update(
        own=front_end.own,
        third_party=front_end.third_party,
        is_built=bool(front_end.vendor()),
        figures=formats.figures,
        ago=formats.ago,
        sparkline=sparkline,
        counter=Counter,
        witness_words=witness_words,
    )
    return made


def anchor(text: str) -> str:
    """A text as it may stand in an `id`; different texts stay different."""
    if re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def query(names: Sequence[str]) -> str:
    """`name=a&name=b`"""
    return urlencode([("name", name) for name in names])
