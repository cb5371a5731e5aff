"""The 5,000 real memories that tests and benchmarks ingest, where they are at hand."""

import gzip
import os
from pathlib import Path
from typing import Any

import msgspec

from tests.support.tools import missing


def dataset_path() -> Path:
    """Where the memories are; skips the test when they are nowhere."""
    named = os.environ.get("RAFTSPINE_DATASET")
    path = Path(named) if named else Path(__file__).resolve().parents[3] / "shared/data/memories.jsonl.gz"
    if not path.exists():
        missing(f"no data set at {path} (set RAFTSPINE_DATASET)")
    return path


def dataset() -> list[dict[str, Any]]:
    with gzip.open(dataset_path(), "rb") as lines:
        return [msgspec.json.decode(line) for line in lines]
