"""A person's devices behind the port Teleoperator: keyboard, gamepad, SpaceMouse and leader arms.

It may import core, recipe and world. The page in a browser belongs to web.
"""
