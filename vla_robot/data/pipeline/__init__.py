"""Turns episodes into training windows: standardised actions, statistics, shuffling, windows and weighted mixtures.

This package may import core, recipe and `data.formats`, and not torch.
"""
