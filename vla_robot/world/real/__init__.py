"""Drivers of real robots through LeRobot: arms, leader arms, cameras, inverse kinematics and set points.

This package may import core and recipe. safety and serve.bridge decide when to move, how fast, and what to refuse.
"""
