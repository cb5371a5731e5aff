"""The data that a workload expects to find, stored through the client before the measurement."""

import asyncio
from collections.abc import Sequence

from raftspine.bench.workloads import MIXES, Shape, key_names, values
from raftspine.client import AsyncSpine
from raftspine.errors import SpineError

PER_REQUEST = 250
AT_A_TIME = 4
TIMEOUT_S = 30.0


def preload(urls: Sequence[str], workloads: Sequence[str], shape: Shape) -> int:
    """Store every key that these workloads read or overwrite; returns how many. Raises SpineError when one of
    them cannot be stored: a benchmark on half the data would measure misses."""
    kinds = sorted({MIXES[name].strong for name in workloads})
    return sum(asyncio.run(_store(urls, shape, strong=strong)) for strong in kinds)


async def _store(urls: Sequence[str], shape: Shape, *, strong: bool) -> int:
    contents = values(shape)
    tags = ["critical"] if strong else []
    ops = [
        {"op": "put", "id": key.decode(), "content": contents[n % len(contents)], "tags": tags}
        for n, key in enumerate(key_names(shape.keys, strong=strong))
    ]
    chunks = iter([ops[at : at + PER_REQUEST] for at in range(0, len(ops), PER_REQUEST)])

    async def work(spine: AsyncSpine) -> None:
        for chunk in chunks:
            for result in await spine.batch(chunk):
                if result.error is not None:
                    raise SpineError(f"cannot preload {result.id}: {result.error}") from result.error

    async with AsyncSpine(urls, api_key=shape.api_key, timeout=TIMEOUT_S) as spine:
        await asyncio.gather(*(work(spine) for _ in range(AT_A_TIME)))
    return len(ops)
