"""Inputs and outputs of the model: frames, prompts, states and the action tokenizer.

It may import core and `policy.openvla.network`. The language model's forward pass belongs to `engine`.
"""
