"""The server's TLS certificate, reloaded when its files change, since certificates are rotated."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import NoReturn, Self

from tuning_operator.studies.settings import StudySettings

log = logging.getLogger(__name__)

POLL_SECONDS = 30.0


class Certificate:
    """A certificate and its key, as files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._state()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(*self._files)

    @classmethod
    def of(cls, settings: StudySettings) -> Self | None:
        """Return the certificate that the settings name; None for plain HTTP."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_cert_file, settings.tls_key_file)

    def refresh(self) -> bool:
        """Reload the files if they changed, for new connections. Return whether they were reloaded.

        In the middle of a rotation the certificate and the key may not match: then the old pair stays in use.
        """
        try:
            state = self._state()
            if state == self._seen:
                return False
            self.context.load_cert_chain(*self._files)
        except OSError as error:  # ssl.SSLError is one
            log.warning("The new TLS certificate cannot be used yet: %s", error)
            return False
        self._seen = state
        log.info("The TLS certificate was renewed")
        return True

    async def follow(self) -> NoReturn:
        """Check the files regularly."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.refresh()

    def _state(self) -> list[tuple[int, int, int]]:
        stats = [file.stat() for file in self._files]
        return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]
