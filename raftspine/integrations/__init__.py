"""Drivers that let other systems use raftspine by their own interfaces. Each needs its extra: `raftspine[tooz]`."""
