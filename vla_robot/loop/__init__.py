"""The control loop, for worlds that wait and robots that do not; takeover by a person, timing and events.

It may import core, recipe, policy, safety, data and record. Reports and evaluation subscribe to its events and belong
to evaluate; torch is never imported here.
"""
