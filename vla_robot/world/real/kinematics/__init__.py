"""The geometry of an arm, from its MJCF file: poses of the tool, ranges of the joints, distances of its bodies.

This package may import core, recipe and world.sim. It opens no device and decides nothing about time.
"""
