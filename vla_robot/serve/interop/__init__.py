"""Protocols of other projects (openpi, GR00T, OpenVLA's REST), and the mapping of their data to ours.

It may import core, recipe, transport, web and `serve.policy`. Our own protocol belongs to transport.
"""
