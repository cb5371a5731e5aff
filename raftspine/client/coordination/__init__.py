"""What a client can hold (locks, offices, claims, sessions) or pass (gates), and what it can watch.

See DESIGN.md in the folder above for the rules all of it keeps.
"""
