"""Where the client's chance comes from: idempotency keys and the jitter between retries.

A client lives in the user's program, away from a node's `system` module, so it brings its own adapter of
`ports.Entropy`. Tests and the simulator pass another one and get the same keys twice. Without the seam a
retry bug that depends on jitter could never be replayed.
"""

from os import urandom  # noqa: TID251 - the one place in the client; everything else takes an Entropy


class OsEntropy:
    """The operating system's randomness, safe to use after a fork and from any thread."""

    def random(self) -> float:
        """Uniform in [0, 1), with the 53 bits a float can hold."""
        return (int.from_bytes(urandom(7), "big") >> 3) / (1 << 53)

    def token_bytes(self, n: int) -> bytes:
        return urandom(n)
