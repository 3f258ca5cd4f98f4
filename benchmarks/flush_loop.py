"""The disk's limit for small files: create, write, fsync and rename each of them, one by one or by several threads.

python benchmarks/flush_loop.py SOURCE TARGET [--threads 16]
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def store(path: Path, data: bytes) -> None:
    """Put one file in its place so that a power cut leaves all of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(part, path)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.target.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.threads) as threads:
        done = [
            threads.submit(store, options.target / path.name, path.read_bytes())
            for path in sorted(options.source.iterdir())
        ]
        for each in done:
            each.result()
    directory = os.open(options.target, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


if __name__ == "__main__":
    main()
