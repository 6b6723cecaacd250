"""Implements the port Teleoperator for keyboard, gamepad, SpaceMouse and leader arms.

This room may import core, recipe and world. Teleoperation from a page in a browser belongs to web.
"""
