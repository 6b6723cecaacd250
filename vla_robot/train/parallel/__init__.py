"""Training on several devices and within their memory: DDP, FSDP, activation checkpointing, the memory plan.

It may import core, recipe and policy. Batches and losses belong elsewhere in train.
"""
