"""What may reach the arm: chunk execution, limits, the safety filter and the watchdog.

It may import core and recipe. Nothing here opens a socket or a device, and nothing here trusts its input.
"""
