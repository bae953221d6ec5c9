"""Who calls: a token's claims, checked, become the operator or the pod of one trial."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jwt

from tuning_operator.protocol import Problem
from tuning_operator.resource import names
from tuning_operator.studies.errors import Forbidden, Unauthenticated

LOCAL_ISSUER = "tuning-local"
LOCAL_OPERATOR = "local:operator"
LEEWAY_SECONDS = 10.0
CACHED_TOKENS = 20_000


@dataclass(frozen=True)
class Operator:
    """The operator, by its service account."""

    account: str


@dataclass(frozen=True)
class TrialPod:
    """A pod; which trial it may speak for follows from its name."""

    namespace: str
    pod: str

    def owns(self, namespace: str, study: str, trial: int) -> bool:
        """Return whether this is a pod of the trial's Job: the Job's name is compared whole."""
        return self.namespace == namespace and names.job_of_pod(self.pod) == names.job_name(study, trial)


Identity = Operator | TrialPod


class Key(NamedTuple):
    """A key that may have signed a token, and the algorithm that goes with it."""

    key: Any
    algorithm: str


class Keys(Protocol):
    """Where the keys of the issuer come from."""

    async def find(self, kid: str | None) -> Key | None:
        """Return the key of this id, None if the issuer has none. Raises Unavailable."""

    async def issuer(self) -> str:
        """Return the issuer that tokens must name. Raises Unavailable."""


class LocalKeys:
    """Keys of the local mode: one shared secret, HS256."""

    def __init__(self, secret: str) -> None:
        self._key = Key(secret, "HS256")

    async def find(self, kid: str | None) -> Key | None:  # noqa: ARG002  one key for all
        """Return the secret."""
        return self._key

    async def issuer(self) -> str:
        """Return the local mode's issuer."""
        return LOCAL_ISSUER


class Verifier:
    """Checks tokens; what was found of a token is kept until the token expires.

    Args:
        keys: the keys of the issuer.
        operator: the operator's service account, `namespace:name`.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: Keys, operator: str, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._operator = f"system:serviceaccount:{operator}"
        self._clock = clock
        self._known: dict[str, tuple[Identity, float]] = {}

    def known(self, token: str) -> Identity | None:
        """Return who showed this token before, if it is still good."""
        found = self._known.get(token)
        return found[0] if found and self._clock() < found[1] else None

    async def identify(self, token: str) -> Identity:
        """Return who shows this token.

        Raises:
            Unauthenticated: it is malformed, expired, meant for others, or not signed by the issuer.
            Unavailable: the issuer's keys cannot be had.
        """
        if identity := self.known(token):
            return identity
        claims = await self._claims(token)
        identity = self._identity(claims)
        self._remember(token, identity, float(claims["exp"]) + LEEWAY_SECONDS)
        return identity

    async def _claims(self, token: str) -> dict[str, Any]:
        key = await self._keys.find(_kid(token))
        if key is None:
            raise unauthenticated("the token is not signed by this cluster: its key is not known")
        issuer = await self._keys.issuer()
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=names.TOKEN_AUDIENCE,
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise unauthenticated(_reason(error, issuer)) from None
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        if claims["sub"] == self._operator:
            return Operator(claims["sub"])
        match claims.get("kubernetes.io"):
            case {"namespace": str(namespace), "pod": {"name": str(pod)}}:
                return TrialPod(namespace, pod)
        raise unauthenticated(
            f"the token of {claims['sub']} is bound to no pod: mount it as a projected volume of the pod"
        )

    def _remember(self, token: str, identity: Identity, until: float) -> None:
        if len(self._known) >= CACHED_TOKENS:
            now = self._clock()
            self._known = {known: found for known, found in self._known.items() if found[1] > now}
        if len(self._known) < CACHED_TOKENS:
            self._known[token] = (identity, until)


def authorize_operator(identity: Identity) -> None:
    """Let only the operator pass. Raises Forbidden."""
    if not isinstance(identity, Operator):
        raise _forbidden(f"the pod {identity.namespace}/{identity.pod} may use its own trial's paths only")


def authorize_trial(identity: Identity, namespace: str, study: str, trial: int) -> None:
    """Let only a pod of this very trial pass. Raises Forbidden."""
    if isinstance(identity, Operator):
        raise _forbidden("this path is for the trial's own pods; the operator may tell a result")
    if not identity.owns(namespace, study, trial):
        raise _forbidden(
            f"the pod {identity.namespace}/{identity.pod} is not one of trial {trial} of {namespace}/{study}"
        )


def authorize_either(identity: Identity, namespace: str, study: str, trial: int) -> None:
    """Let the operator and the trial's own pods pass. Raises Forbidden."""
    if not isinstance(identity, Operator):
        authorize_trial(identity, namespace, study, trial)


def mint_operator(secret: str, seconds: float = 86_400) -> str:
    """Return a token of the local mode that makes its bearer the operator (account `local:operator`)."""
    return _mint(secret, seconds, {"sub": f"system:serviceaccount:{LOCAL_OPERATOR}"})


def mint_pod(secret: str, namespace: str, pod: str, seconds: float = 86_400) -> str:
    """Return a token of the local mode with the claims that a pod's projected token has."""
    claims = {"namespace": namespace, "pod": {"name": pod}}
    return _mint(
        secret, seconds, {"sub": f"system:serviceaccount:{namespace}:default", "kubernetes.io": claims}
    )


def unauthenticated(message: str) -> Unauthenticated:
    """Return the error for a token that proves nothing."""
    return Unauthenticated(Problem(field="Authorization", message=message))


def _mint(secret: str, seconds: float, claims: dict[str, Any]) -> str:
    standard = {"iss": LOCAL_ISSUER, "aud": [names.TOKEN_AUDIENCE], "exp": int(time.time() + seconds)}
    return jwt.encode(standard | claims, secret, algorithm="HS256")


def _kid(token: str) -> str | None:
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        raise unauthenticated("the token is no JSON Web Token") from None
    return kid if isinstance(kid, str) else None


def _reason(error: jwt.PyJWTError, issuer: str) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired: read it again from its file, it is rotated"
        case jwt.InvalidAudienceError():
            return f"the token is meant for another audience: request it for {names.TOKEN_AUDIENCE}"
        case jwt.InvalidIssuerError():
            return f"the token is from another issuer than {issuer}"
        case jwt.InvalidAlgorithmError():
            return "the token is signed with an algorithm that its key is not for"
        case jwt.InvalidSignatureError():
            return "the token's signature is wrong"
    return f"the token is not valid: {error}"


def _forbidden(message: str) -> Forbidden:
    return Forbidden(Problem(field="Authorization", message=message))
