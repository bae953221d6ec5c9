"""A whole study as a reply, sent piece by piece: the event loop is free between them."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from fastapi.responses import StreamingResponse

from tuning_operator.studies.study.finished import pieces
from tuning_operator.studies.study.served_study import ServedStudy


def record_reply(study: ServedStudy) -> StreamingResponse:
    """Return the study as the protocol's FinishedStudy."""
    return StreamingResponse(_sent(pieces(study)), media_type="application/json")


async def _sent(rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, rest, None)) is not None:
        yield piece
