"""What all studies of a server share."""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from tuning_operator.studies.storage.base import Store, Writes
from tuning_operator.studies.study.feed import ChangeFeed

COMMIT_SECONDS = 20.0
"""How long a request waits for the database. What it wrote stays queued: sent again, it is there."""


@dataclass(frozen=True)
class Surroundings:
    """Where studies are kept, where Optuna's work is done, and who is told of changes."""

    store: Store
    executor: Executor
    feed: ChangeFeed

    async def settle(self, *several: Writes) -> None:
        """Wait until writes are durable; without any given, all that the reply may be based on.

        Raises what kept the first write from being so, and TimeoutError when the database is away.
        """
        async with asyncio.timeout(COMMIT_SECONDS):
            for writes in several:
                await writes.durable()
            if not several:
                await self.store.durable()
