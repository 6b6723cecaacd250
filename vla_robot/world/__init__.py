"""Worlds and robots behind the ports World and Arm: simulators in `sim`, hardware in `real`.

It may import core, recipe and transport. No policy, no network protocol and no dataset format belongs here.
"""
