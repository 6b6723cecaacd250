"""Turns windows of a dataset into batches of tensors: augmentation, frames, streams and questions.

It may import core, recipe, policy and data. No optimiser belongs here.
"""
