"""Implements the ports World and Arm: simulators in `sim`, hardware in `real`.

This room may import core, recipe and transport. No policy, network protocol or dataset format belongs here.
"""
