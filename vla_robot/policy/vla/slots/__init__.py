"""Inference in blocks of a few fixed sizes, so that a GPU can repeat what it recorded once.

It may import core, `sequence`, `reason`, `inputs` and `model`. What a family computes is not decided here.
"""
