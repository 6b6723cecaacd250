"""Code that several verbs share: options, signals, JSON output, progress, real-time priority.

It may import core, recipe and transport. No verb belongs here.
"""
