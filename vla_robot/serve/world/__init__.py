"""A simulated world in a process of its own, and the client that looks like a world.

It may import core, recipe, transport, safety and world. Real robots are behind `serve.bridge`.
"""
