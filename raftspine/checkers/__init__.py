"""Checkers: was what clients saw allowed? Pure judges over recorded histories; see DESIGN.md beside this file."""
