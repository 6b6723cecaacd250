"""Servers and clients over the network: the robot's bridge, policies, worlds, and other projects' protocols.

It may import every room below it. Command-line options belong to cli.
"""
