"""From episodes to training windows: standardised actions, statistics, shuffling, windows and weighted mixtures.

It may import core, recipe and `data.formats`. No tensor of torch is made here.
"""
