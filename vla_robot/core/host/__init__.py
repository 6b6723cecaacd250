"""Services of the host computer: durable files, claimed folders, the user's cache, the console, versions, packages.

Names of devices and former names of arguments are here, too. It imports the standard library and core.errors. Code
about robots or policies belongs elsewhere.
"""
