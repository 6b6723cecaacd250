"""Policies behind the port Policy: families of models, and scripted ones to compare with.

It may import core, recipe and transport. Training belongs to train; no simulator, dataset or socket is opened here.
"""
