"""`raftspine verify`: watch a live cluster keep its promises, or break one. See DESIGN.md beside this file."""
