"""Web pages and their servers: the live view with its e-stop, and teleoperation from a browser.

It may import core, recipe, transport, world and teleop. The bridge decides what the arm does; a page sends requests.
"""
