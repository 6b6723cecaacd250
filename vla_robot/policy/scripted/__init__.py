"""Policies that are programs: hold, random, waypoints, the scripted experts, and perturbed actions.

It may import core. Nothing here loads weights or imports torch.
"""
