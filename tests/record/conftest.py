"""Fixture `make_demo`: demonstrations with known content."""

from ..data.conftest import make_demo as make_demo
