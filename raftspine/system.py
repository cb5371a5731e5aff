"""The machine's clock and chance, and what else only the operating system can grant.

The rule: no other module reads a clock or draws a random number; they take `ports.Clock` and `ports.Entropy`.
Without it a run cannot be repeated, and what fails once in a thousand runs is never found.
"""

import os
import random
import secrets
import stat
import sys
import time
from pathlib import Path

import structlog

from raftspine.errors import Misuse

SECRET_BYTES = 32


class SystemClock:
    """ports.Clock."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class SystemEntropy:
    """ports.Entropy. `random` is for jitter and choice, `token_bytes` is fit for keys and nonces."""

    def __init__(self) -> None:
        self._generator = random.Random(secrets.randbits(64))

    def random(self) -> float:
        return self._generator.random()

    def token_bytes(self, n: int) -> bytes:
        return secrets.token_bytes(n)


def load_or_create_secret(path: Path) -> bytes:
    """The secret in this file; a new one, readable by its owner only, when there is no file. For `raftspine
    dev`, whose nodes share it. Misuse when others may read the file."""
    try:
        # Written aside, then linked into place: of nodes that start at once, all read one whole secret.
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            try:
                os.link(draft, path)
            except FileExistsError:
                pass  # another node was first; its secret is the one
            finally:
                draft.unlink()
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Misuse(f"{path} is readable by others; run: chmod 600 {path}")
        return path.read_bytes().strip()
    except OSError as error:
        raise Misuse(f"cannot keep the cluster secret in {path}: {error.strerror}") from error


def raise_nofile_limit() -> int:
    """Lift this process's limit of open files as far as the system allows, and return the limit: each client
    connection is a file, and the usual default of 1024 is reached by one agent fleet."""
    import resource  # not on every platform; only `serve` calls this

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def configure_logging(level: str = "info") -> None:
    """One event a line on stderr: for people on a terminal, as JSON elsewhere. Tracebacks come without the values of
    variables, which may be somebody's memories."""
    colour = sys.stderr.isatty()
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer() if colour else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
