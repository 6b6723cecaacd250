"""Metrics of a policy server and of a bridge in Prometheus' text format, served by a process of their own.

It may import web's bounded HTTP server. The serving processes import `process` only, which needs no package.
"""
