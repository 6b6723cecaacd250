"""Demonstrations whose content the tests know."""

from ..data.conftest import make_demo as make_demo
