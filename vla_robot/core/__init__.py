"""Types that every room shares: observations, actions, embodiments, clocks, errors, geometry and the ports.

It imports numpy and the standard library, and no room. Code that opens a socket, a device or a dataset belongs
elsewhere.
"""
