"""Meta-World's tasks as worlds. They run in the environment `metaworld` only, with its own mujoco.

This package may import core, recipe and the rest of `world.sim`.
"""
