"""Messages and how they travel: the wire format, its codec, ZeroMQ sockets, keys, clock offsets and rates.

It may import core. What a message means to a robot, a policy or a world belongs to serve.
"""
