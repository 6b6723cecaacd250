"""Fine-tuning: batches, the trainer, LoRA, distributed training and checkpoints.

It may import core, recipe, policy and data. Closed-loop evaluation belongs to evaluate.
"""
