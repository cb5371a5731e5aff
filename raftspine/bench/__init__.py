"""Measuring a cluster: a load generator, the workloads, and the report.

Pure measurement: nothing in a node or a client depends on it. See DESIGN.md beside this file for what makes a
figure comparable.
"""
