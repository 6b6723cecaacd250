"""Runs of many episodes, evaluation with confidence intervals, instruction variants, reports.

It may import core, recipe, policy, record and loop. The control of one episode belongs to loop.
"""
