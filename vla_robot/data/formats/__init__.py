"""Implements the port EpisodeSource for RLDS, LeRobot and HDF5, and converts between these formats.

`storage` reads files on disk and behind URLs.

This package may import core and recipe. `data.pipeline` decides what the numbers mean.
"""
