"""The whole matrix: every client end, every server end, every feature. Prints what fails, and a line for each part."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # for `python tests/matrix/run.py`

from tests.matrix.pairs import ENDS, PAIRS, Pair
from tests.matrix.running import Tally, fill
from tests.matrix.sdks import CLIENTS, SERVERS
from tests.matrix.world import open_world
from tests.node.setup import Node, NodeMissing, install


async def by_hand() -> Tally:
    """Fill every cell between ends without a library."""
    async with open_world(ENDS) as world:
        return await fill(world, PAIRS)


async def sdk_clients(node: Node, place: Path) -> Tally:
    """Fill every cell between a client of an SDK and a server without a library."""
    total = Tally()
    for made in CLIENTS:
        async with open_world(ENDS) as world:
            await world.join(made.end, made.connect(world, node, place))
            total += await fill(world, [Pair(made.end, server) for server in ENDS])
    return total


async def sdk_servers(node: Node, place: Path) -> Tally:
    """Fill every cell between a client without a library and a server on an SDK."""
    total = Tally()
    for made in SERVERS:
        async with made.serve(node, place) as server:
            async with open_world([], others={made.end.name: server}, eras=made.eras) as world:
                total += await fill(world, [Pair(client, made.end) for client in ENDS])
    return total


def main() -> int:
    """Run, print, and say whether a cell failed."""
    try:
        node = install()
    except NodeMissing as error:
        print(f"matrix: {error}", file=sys.stderr)
        return error.code
    with tempfile.TemporaryDirectory(prefix="omni-matrix-") as place:
        parts = {
            "without a library": asyncio.run(by_hand()),
            "clients of SDKs": asyncio.run(sdk_clients(node, Path(place))),
            "servers on SDKs": asyncio.run(sdk_servers(node, Path(place))),
        }
    failed = [f"x {line}" for tally in parts.values() for line in tally.failed]
    print("\n".join([*failed, *(f"matrix, {name}: {tally}" for name, tally in parts.items())]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
