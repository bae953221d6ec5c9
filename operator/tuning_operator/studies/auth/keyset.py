"""The API server's public keys, which verify the tokens of service accounts."""

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt

from tuning_operator.protocol import Problem
from tuning_operator.studies.auth.tokens import SigningKey
from tuning_operator.studies.errors import Unavailable

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"})
"""Asymmetric ones only: with HS256 among them, a public key would serve as a shared secret."""
MAX_AGE_SECONDS = 3600.0
REFRESH_SECONDS = 5.0
"""The shortest time between two fetches, since anyone can send an unknown key ID."""


@dataclass(frozen=True)
class Published:
    """What the API server publishes: its issuer name and its keys (a JSON Web Key Set)."""

    issuer: str
    jwks: dict[str, Any]


class PublishedKeys:
    """Keys fetched when first needed, when an unknown key ID is seen, and every hour.

    Args:
        fetch: gets what the API server publishes.
        clock: monotonic seconds.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Published]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._issuer: str | None = None
        self._error = "not fetched yet"
        self._keys: dict[str | None, SigningKey] = {}
        self._fetched = self._tried = -math.inf

    async def find(self, kid: str | None) -> SigningKey | None:
        """Return the key with this ID; None if there is none. Raises Unavailable."""
        if kid not in self._keys or self._clock() - self._fetched > MAX_AGE_SECONDS:
            await self._refresh()
        self._check_fetched()
        key = self._keys.get(kid)
        if key is None and self._error:  # it may be a new one
            raise self._unavailable()
        return key

    async def issuer(self) -> str:
        """Return the issuer that tokens must have. Raises Unavailable."""
        if self._issuer is None:
            await self._refresh()
        self._check_fetched()
        return self._issuer or ""

    async def _refresh(self) -> None:
        async with self._lock:
            if self._clock() - self._tried < REFRESH_SECONDS:
                return
            self._tried = self._clock()
            try:
                published = await self._fetch()
            except (OSError, ValueError, KeyError, httpx.HTTPError) as error:
                log.warning("The API server's keys could not be fetched: %r", error)
                self._error = repr(error)
                return
            self._error = ""
            self._issuer = published.issuer
            self._keys = _keys(published.jwks)
            self._fetched = self._clock()

    def _check_fetched(self) -> None:
        """Raise Unavailable if there are no keys; old ones are used while the API server is unreachable."""
        if self._issuer is None:
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        message = f"the API server's keys could not be fetched, so tokens cannot be checked: {self._error}"
        return Unavailable(Problem(field="Authorization", message=message))


class ApiServer:
    """Fetches the keys from the API server with the study server's own service account."""

    def __init__(self, url: str, token_file: Path, ca_file: Path, issuer: str | None) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._issuer = issuer

    async def fetch(self) -> Published:
        """Return the keys and the issuer. Raises httpx.HTTPError, OSError, ValueError or KeyError."""
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        verify = ssl.create_default_context(cafile=str(self._ca_file))
        # Without the environment's proxy, which is for hosts outside of the cluster.
        async with httpx.AsyncClient(
            base_url=self._url, verify=verify, headers=headers, timeout=10, trust_env=False
        ) as http:
            issuer = self._issuer or (await _get(http, "/.well-known/openid-configuration"))["issuer"]
            return Published(issuer, await _get(http, "/openid/v1/jwks"))


async def _get(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    response = await http.get(path)
    response.raise_for_status()
    found: dict[str, Any] = response.json()
    return found


def _keys(jwks: dict[str, Any]) -> dict[str | None, SigningKey]:
    found: dict[str | None, SigningKey] = {}
    for entry in jwks["keys"]:
        try:
            key = jwt.PyJWK.from_dict(entry)
        except jwt.PyJWTError as error:  # PyJWT does not support this type of key
            log.warning("Ignoring a key of the API server: %s", error)
            continue
        if key.algorithm_name in ALGORITHMS:
            found[key.key_id] = SigningKey(key.key, key.algorithm_name)
    return found
