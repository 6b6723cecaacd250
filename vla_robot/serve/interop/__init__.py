"""Protocols of other projects: openpi, GR00T and OpenVLA's REST, and how their numbers map to ours.

It may import core, recipe, transport, web and `serve.policy`. Our own protocol belongs to transport.
"""
