"""Server and client of a simulated world in a process of its own.

It may import core, recipe, transport, safety and world. Real robots are behind `serve.bridge`.
"""
