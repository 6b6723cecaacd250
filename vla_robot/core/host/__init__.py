"""Services of the host computer: durable files, claimed folders, the console, versions, packages, renamed arguments.

It imports the standard library and core.errors. Code about robots or policies belongs elsewhere.
"""
