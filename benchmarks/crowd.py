"""Many clients of Twinport that begin at the same moment: one program that has imported the library forks them all.

    python benchmarks/crowd.py --host H:P [--user U --key FILE --fingerprint HEX] put FOLDER PATH...
    python benchmarks/crowd.py --host H:P [...] get DIRECTORY NAME...

Each moves one of the files over a connection of its own. Prints their seconds as a JSON list.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback

import twinport
from twinport import Client


def move(act: str, place: str, what: str, client: Client) -> None:
    """One transfer. Raises ``TwinportError``."""
    report = client.put(what, to=place) if act == "put" else client.get(what, place)
    if report.failures:
        raise twinport.TwinportError(str(report.failures[0]))


def run_one(options: argparse.Namespace, what: str, begin: int) -> float:
    """One client's life, from the moment when everybody may begin; how long it took."""
    os.read(begin, 1)  # the end of the file, when the parent closes it
    began = time.perf_counter()
    host, _, port = options.host.rpartition(":")
    login = {name: value for name in ("user", "key", "fingerprint") if (value := getattr(options, name))}
    with twinport.connect(host, int(port), tls=bool(login), **login) as client:
        move(options.act, options.place, what, client)
    return time.perf_counter() - began


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("host", "user", "key", "fingerprint"):
        parser.add_argument(f"--{name}")
    parser.add_argument("act", choices=("put", "get"))
    parser.add_argument("place")
    parser.add_argument("what", nargs="+")
    options = parser.parse_args()
    begin, barrier = os.pipe()
    times, tell = os.pipe()
    children = []
    for what in options.what:
        pid = os.fork()
        if pid == 0:
            os.close(barrier)
            try:
                os.write(tell, f"{run_one(options, what, begin)}\n".encode())
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    os.close(begin)
    os.close(tell)
    os.close(barrier)
    with os.fdopen(times) as lines:
        seconds = [float(line) for line in lines]
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)
    print(json.dumps(seconds))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
