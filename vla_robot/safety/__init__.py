"""Chunk execution, limits, the safety filter and the watchdog, which decide what is sent to the arm.

This room may import core and recipe. It opens no socket and no device, and it checks all of its input.
"""
