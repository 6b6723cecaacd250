"""One policy for many robots: batching, its server and its client.

It may import core and transport. The model is behind the port Policy.
"""
