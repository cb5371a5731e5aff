"""How deep a command's containers are nested, known before it is decoded.

The rule: a command nested deeper than DEEPEST is malformed on every replica. A decoder that recurses goes as deep as
the stack below it leaves room (about a thousand levels, less where the caller stands deep already), so without a
bound of its own the same bytes would be a command here and none there, and the replicas would differ for good.

Nearly every command is passed by counting the bytes that could begin a container; only one with very many of
them is walked, token by token and without recursion.
"""

DEEPEST = 512
"""Far above what front ends let through (core/limits.py, limits.py), far below where any decoder gives up."""

_CONTAINERS = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))
"""First bytes of maps and arrays in msgpack."""

_SIZES = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
"""Bytes behind the first byte of a scalar of fixed size."""
_LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
            0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}  # fmt: skip
"""Bytes of the length, and of what stands between it and that many bytes."""
_COUNTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Bytes of the count, and items for each counted."""


def is_too_deep(data: bytes) -> bool:
    """Whether msgpack nests containers deeper than DEEPEST. Bytes that end too early are the decoder's business."""
    if len(data) - len(data.translate(None, _CONTAINERS)) <= DEEPEST:
        return False
    left = [1]  # items still to come, for each container that is open
    at, end = 0, len(data)
    while left and at < end:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        first = data[at]
        at += 1
        if first < 0x80 or first >= 0xE0:
            continue
        if first < 0xA0:
            left.append((first & 0x0F) * (2 if first < 0x90 else 1))
        elif first < 0xC0:
            at += first & 0x1F
        elif first in _SIZES:
            at += _SIZES[first]
        elif first in _LENGTHS:
            size, between = _LENGTHS[first]
            at += size + between + int.from_bytes(data[at : at + size], "big")
        elif first in _COUNTS:
            size, each = _COUNTS[first]
            left.append(each * int.from_bytes(data[at : at + size], "big"))
            at += size
        if len(left) > DEEPEST + 1:
            return True
    return False
