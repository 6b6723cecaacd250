"""Policies that are programs: hold, random, waypoints, the scripted experts, and perturbed actions.

It may import core and recipe. No module here loads weights or imports torch.
"""
