"""The robot's bridge, which owns the arm, its clock, limits and watchdog; and the controller's client.

It may import core, transport, safety, record and data. No code here may wait for a person, a disk or a network.
"""
