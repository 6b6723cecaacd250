"""File formats behind the port EpisodeSource: RLDS, LeRobot and HDF5, and conversion between them.

It may import core and recipe. What a number means is decided in `data.pipeline`.
"""
