"""What the computer around a program is asked for: durable files, claimed folders, the console, versions and packages.

It imports the standard library and core.errors. Nothing about robots or policies belongs here.
"""
