"""LIBERO's and LIBERO-PRO's tasks as worlds. They run in the environment `libero` only, with robosuite 1.4.0.

This package may import core, recipe and the rest of `world.sim`, but not `robosuite_world`, which is for robosuite 1.5.
"""
