"""Drivers of real robots through LeRobot: arms, leader arms, cameras, inverse kinematics and set points.

It may import core and recipe. When to move, how fast and what to refuse is decided in safety and serve.bridge.
"""
