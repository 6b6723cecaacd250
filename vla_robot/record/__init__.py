"""Records the crash-proof episode log, demonstrations by experts and people, and corrections from takeovers.

This room may import core, recipe, transport, data, policy, world and safety. Formats of datasets belong to data.
"""
