"""One policy for many robots: batching, server and client.

It may import core and transport. The model is behind the port Policy.
"""
