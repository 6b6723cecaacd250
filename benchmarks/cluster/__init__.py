"""Arithmetic of what a cluster takes, from measured constants; nothing of it runs on a cluster."""
