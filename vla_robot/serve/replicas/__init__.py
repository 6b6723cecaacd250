"""Copies of one policy in processes of their own, behind the one server that clients connect to.

It may import serve/policy. A replica's process imports no socket and no protocol of clients: those are the server's.
"""
