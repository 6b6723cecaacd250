"""Reads LeRobot datasets of versions 2.0 to 3.0, and writes version 3.0.

This package may import core and `data.formats`. No other format belongs here.
"""
