"""Contrastive pre-training of a vision tower: losses, both towers, captions, and how a new model takes a tower over.

It may import core, recipe, policy, data and train. Nothing of robots or worlds belongs here.
"""
