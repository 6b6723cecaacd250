"""Simulated worlds: robosuite and plain MuJoCo, their renderer, success tests and Gymnasium environments.

This package may import core and recipe, and `world.real.kinematics.tool_ik` for inverse kinematics. No code for
hardware belongs here.
"""
