"""Many episodes and what they tell: runs, evaluation with intervals, instruction variants, reports.

It may import core, recipe, policy, record and loop. How one episode is driven belongs to loop.
"""
