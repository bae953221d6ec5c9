"""What a trial reports: sent at once, or kept in order while the server can't be reached."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tuning_trainer.log import log
from tuning_trainer.wire.client import Refused, Unreachable
from tuning_trainer.wire.codec import number_to_wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tuning_trainer.wire.client import Client

PATIENCE = 10.0
"""Seconds that an outage may delay the training, whose GPU is idle meanwhile. After that, training continues
without pruning, and the outbox tries again from time to time."""
RETRY_TIMEOUT = 5.0
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # seconds between attempts
BATCH = 500  # entries in a request
UNACCEPTABLE = (413, 422)  # too large, or invalid: the entry itself is rejected, not the trial


KINDS = {
    "report": "the value of step",
    "user_attrs": "the user attribute",
    "study_attrs": "the study's user attribute",
    "constraints": "the constraint",
}
"""The kinds of entries, for messages."""


class _Entry(NamedTuple):
    kind: str  # one of KINDS
    key: int | str
    value: Any


class Outbox:
    """The queue of a trial's reports, attributes and constraints. Thread-safe."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.RLock()
        self._entries: list[_Entry] = []
        self._pause = 0.0  # seconds until the next attempt; 0 if the server answers
        self._next_attempt = 0.0
        self._prune = False
        self._gathering = False
        self._batch = BATCH
        self._rejections: set[str] = set()

    def put(self, kind: str, key: int | str, value: Any) -> None:
        """Send an entry after the earlier ones; returns within PATIENCE.

        An entry that the server can't keep is logged and dropped, and the trial goes on.

        Raises:
            Refused: the server rejects the trial.
        """
        with self._lock:
            self._entries.append(_Entry(kind, key, value))
            if not self._gathering:
                self._send_if_due()

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Send what is put in the block at its end, in as few requests as possible."""
        with self._lock:
            self._gathering = True
            try:
                yield
            finally:
                self._gathering = False
            self._send_if_due()

    def prune(self) -> bool:
        """Return whether the trial should stop, by the reply to the last report; False while reports wait."""
        with self._lock:
            if self._entries:
                self._send_if_due()
            return self._prune and not self._entries

    def drain(self, patience: float) -> None:
        """Send everything that waits; what the server rejects is logged and dropped.

        Raises:
            Unreachable: the server did not answer within the patience.
        """
        with self._lock:
            while self._entries:
                try:
                    self._send_batch(patience, timeout=60.0)
                except Refused as refusal:  # noqa: PERF203
                    log(f"the study server rejected a report: {refusal}")

    def unsent(self) -> tuple[dict[str, dict[str, Any]], list[list[Any]]]:
        """Return what waits: attributes by kind, as in the protocol's AttributesRequest, and reports."""
        attributes: dict[str, dict[str, Any]] = {}
        reported: list[list[Any]] = []
        with self._lock:
            for kind, batch in itertools.groupby(self._entries, key=lambda entry: entry.kind):
                _, body = _request(kind, list(batch))
                reported += body.pop("values", [])
                for field, values in body.items():
                    first_counts = kind == "constraints"
                    known = attributes.setdefault(field, {})
                    known.update({**values, **known} if first_counts else values)
        return attributes, reported

    def _send_if_due(self) -> None:
        away = self._pause > 0
        if away and self._clock() < self._next_attempt:
            return
        try:
            while self._entries:
                self._send_batch(0.0 if away else PATIENCE, RETRY_TIMEOUT if away else PATIENCE)
        except Unreachable as error:
            if not away:
                log(f"{error}; training continues, and reports are kept to be sent later")
            self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self._next_attempt = self._clock() + self._pause

    def _send_batch(self, patience: float, timeout: float) -> None:
        kind = self._entries[0].kind
        batch = self._first_of_kind(kind)
        try:
            reply = self._client.call("POST", *_request(kind, batch), patience=patience, timeout=timeout)
        except Refused as refusal:
            if refusal.status in UNACCEPTABLE and len(batch) > 1:  # find the entry, and send the others
                self._batch = len(batch) // 2
                return
            del self._entries[: len(batch)]
            if refusal.status not in UNACCEPTABLE:
                raise
            self._log_rejection(batch[0], refusal)
            return
        del self._entries[: len(batch)]
        self._batch = BATCH
        self._pause = 0.0
        if kind == "report":
            if reply["prune"] and not self._prune:
                log(
                    f"this trial is to be pruned: {reply.get('reason') or 'the study server gives no reason'}"
                )
            self._prune = bool(reply["prune"])

    def _log_rejection(self, entry: _Entry, refusal: Refused) -> None:
        if str(refusal) not in self._rejections:
            self._rejections.add(str(refusal))
            log(f"the study server rejected {KINDS[entry.kind]} {entry.key!r:.60}, which is lost: {refusal}")

    def _first_of_kind(self, kind: str) -> list[_Entry]:
        batch: list[_Entry] = []
        for entry in self._entries[: self._batch]:
            if entry.kind != kind:
                break
            batch.append(entry)
        return batch


class SilentOutbox(Outbox):
    """Sends nothing: only the first process of distributed training reports."""

    def put(self, kind: str, key: int | str, value: Any) -> None:
        """Send nothing."""


def _request(kind: str, batch: list[_Entry]) -> tuple[str, dict[str, Any]]:
    """Return the path and body that carry a batch."""
    if kind == "report":
        return "/report", {"values": [[entry.key, number_to_wire(entry.value)] for entry in batch]}
    if kind == "constraints":
        first: dict[Any, Any] = {}
        for entry in batch:
            first.setdefault(entry.key, number_to_wire(entry.value))
        return "/attributes", {"constraints": first}
    field = {"user_attrs": "userAttrs", "study_attrs": "studyAttrs"}[kind]
    return "/attributes", {field: {entry.key: entry.value for entry in batch}}
