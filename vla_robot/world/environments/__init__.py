"""Python environments of their own, for worlds whose packages do not fit this one: where they lie, how they are made.

It may import core and recipe. It runs uv and the environment's interpreter; worlds are started by `serve.world`.
"""
