"""Simulated worlds: robosuite and plain MuJoCo, their renderer, success tests and Gymnasium environments.

It may import core and recipe, and `world.real.tool_ik` for inverse kinematics. Nothing that talks to hardware belongs
here.
"""
