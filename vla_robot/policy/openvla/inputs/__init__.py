"""What goes in and comes out as tokens: frames, prompts, states and the action tokenizer.

It may import core and `policy.openvla.network`. No forward pass belongs here.
"""
