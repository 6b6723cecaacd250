"""URLs in recipes, which are no paths: `Path` would make "gs:/bucket" of "gs://bucket"."""

from __future__ import annotations

from pathlib import Path

MARK = "://"


class Url(str):
    """URL of a folder, such as gs://bucket/oxe. `Url | Path` takes either, and a path stays relative to its recipe."""


def location(text: str) -> Url | Path:
    """Return a URL or a path, whichever the text is.

    >>> location("s3://bucket/oxe"), location("data/oxe").name
    ('s3://bucket/oxe', 'oxe')
    """
    return Url(text) if MARK in text else Path(text)
