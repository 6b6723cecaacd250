"""The network of OpenVLA in three steps, perceive, align and reason, with its sizes and their bounds.

It may import core. Reading files and choosing tokens belong to the rooms above it.
"""
