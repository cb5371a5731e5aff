"""The fault laboratory: a store of real node processes on hosts of their own, and what can be done to it.

    network.py   hosts (network namespaces), links that can be cut or reset, a wire with delay and loss
    wire.py      that wire: a process that carries packets between the hosts, late or not at all
    disks.py     a small file system per node, that can be filled; the shim that makes its writes fail
    nodes.py     the nodes: started through the command line, killed, paused, given another clock
    faults.py    the table of faults: what strikes, what heals, who must go on serving meanwhile
    load.py      clients of both paths whose operations become a history
    judge.py     what that history, the nodes and their logs must satisfy
    failover.py  the write gap after a leader's death, measured
    torture.py   all of it in rotation for as long as asked (scripts/torture)

The rule: a fault is a real one, made by the kernel or by a library under the process, never by the program's own
help; and whatever is made here is gone when the run is, also when the run was killed.
"""
