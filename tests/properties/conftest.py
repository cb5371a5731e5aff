"""Hypothesis for the whole folder: a slow machine is not a failed property."""

from hypothesis import settings

settings.register_profile("raftspine", deadline=None, print_blob=True)
settings.load_profile("raftspine")
