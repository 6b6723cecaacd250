"""Transport of messages: the wire format, its codec, ZeroMQ sockets, keys, clock offsets and rates.

It may import core. The meaning of a message for a robot, a policy or a world belongs to serve.
"""
