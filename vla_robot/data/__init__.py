"""Reads, standardises, mixes, converts and checks datasets, both published ones and our own.

This room may import core and recipe. Driving a robot and training a policy belong to record and train.
"""
