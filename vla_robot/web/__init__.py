"""Web pages and their servers: the live view with its e-stop, and driving from a browser.

It may import core, recipe, transport, world and teleop. What the arm does is decided at the bridge; the page only
asks.
"""
