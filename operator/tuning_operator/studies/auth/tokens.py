"""Authentication and authorization: by its token, a caller is the operator, a trial's pod or a reader."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jwt

from tuning_operator.protocol import Problem
from tuning_operator.resource import names
from tuning_operator.studies.errors import Forbidden, Unauthenticated, Unavailable

LOCAL_ISSUER = "tuning-local"
LOCAL_OPERATOR = "local:operator"
SERVICE_ACCOUNT = "system:serviceaccount:"
LEEWAY_SECONDS = 10.0
CACHED_TOKENS = 20_000


@dataclass(frozen=True)
class Operator:
    """The operator, by its service account."""

    account: str


@dataclass(frozen=True)
class TrialPod:
    """A pod; which trial it belongs to follows from its name, and which TuningStudy from its audience."""

    namespace: str
    pod: str
    study_uid: str | None = None
    """The uid of the TuningStudy; None for a pod that an earlier release of the operator started."""

    def owns(self, namespace: str, study: str, trial: int | str) -> bool:
        """Return whether this is a pod of the Job of a trial, or of REFIT. Compares the whole name."""
        return self.namespace == namespace and names.job_of_pod(self.pod) == names.job_name(study, trial)

    def is_worker_of(self, namespace: str, study: str) -> bool:
        """Return whether this is the pod of a worker, whose trials the study server knows."""
        worker = names.worker_of_pod(self.pod)
        return self.namespace == namespace and worker is not None and worker[0] == study

    def __str__(self) -> str:
        return f"the pod {self.namespace}/{self.pod}"


@dataclass(frozen=True)
class Reader:
    """A service account with a token not bound to a pod. May read the records of its namespace."""

    namespace: str
    account: str

    def __str__(self) -> str:
        return f"the service account {self.namespace}/{self.account} (token not bound to a pod)"


Identity = Operator | TrialPod | Reader


class SigningKey(NamedTuple):
    """A key with which tokens may be signed, and its algorithm."""

    key: Any
    algorithm: str


class Keys(Protocol):
    """The issuer's keys."""

    async def find(self, kid: str | None) -> SigningKey | None:
        """Return the key with this ID; None if there is none. Raises Unavailable."""

    async def issuer(self) -> str:
        """Return the issuer that tokens must have. Raises Unavailable."""


class LocalKeys:
    """The local mode's keys: one shared secret, HS256."""

    def __init__(self, secret: str) -> None:
        self._key = SigningKey(secret, "HS256")

    async def find(self, kid: str | None) -> SigningKey | None:  # noqa: ARG002  one key for all
        """Return the secret."""
        return self._key

    async def issuer(self) -> str:
        """Return the local mode's issuer."""
        return LOCAL_ISSUER


class Verifier:
    """Checks tokens, and remembers the bearer of each until it expires.

    Args:
        keys: the keys of the issuer.
        operator: the operator's service account, `namespace:name`.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: Keys, operator: str, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._operator = f"{SERVICE_ACCOUNT}{operator}"
        self._clock = clock
        self._known: dict[str, tuple[Identity, float]] = {}

    def known(self, token: str) -> Identity | None:
        """Return the bearer of a token that was checked before and is still valid."""
        found = self._known.get(token)
        return found[0] if found and self._clock() < found[1] else None

    async def identify(self, token: str) -> Identity:
        """Return the bearer of a token.

        Raises:
            Unauthenticated: it is malformed, expired, for another audience, or not signed by the issuer.
            Unavailable: the issuer's keys could not be fetched, or the token is not valid yet.
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
            raise unauthenticated("the token is not signed by this cluster (unknown key)")
        issuer = await self._keys.issuer()
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_aud": False},  # see `_audience`
            )
        except jwt.ImmatureSignatureError:
            message = (
                "the token is not valid yet: the clock of the study server's node is behind that of the API "
                "server; synchronize the clocks"
            )
            raise Unavailable(Problem(field="Authorization", message=message)) from None
        except jwt.PyJWTError as error:
            raise unauthenticated(_reason(error, issuer)) from None
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        study_uid = _study_uid(claims["aud"])
        if claims["sub"] == self._operator and study_uid is None:
            return Operator(claims["sub"])
        match claims.get("kubernetes.io"):
            case {"namespace": str(namespace), "pod": {"name": str(pod)}}:
                return TrialPod(namespace, pod, study_uid)
            case {"namespace": str(namespace), **bound} if "pod" not in bound and study_uid is None:
                prefix = f"{SERVICE_ACCOUNT}{namespace}:"
                if claims["sub"].startswith(prefix):
                    return Reader(namespace, claims["sub"].removeprefix(prefix))
        raise unauthenticated(
            f"the token of {claims['sub']} belongs neither to a pod nor to a service account: use the pod's "
            "projected token, or create one for a service account (kubectl create token)"
        )

    def _remember(self, token: str, identity: Identity, until: float) -> None:
        self._known[token] = (identity, until)
        if len(self._known) > CACHED_TOKENS:
            del self._known[next(iter(self._known))]  # the oldest


def authorize_operator(identity: Identity) -> None:
    """Admit only the operator. Raises Forbidden."""
    match identity:
        case TrialPod():
            raise _forbidden(f"{identity} may only use the paths of its own trial")
        case Reader():
            raise _only_records(identity)


def authorize_trial(identity: Identity, namespace: str, study: str, trial: int | str) -> None:
    """Admit only a pod of this trial, or of the REFIT. Raises Forbidden."""
    if isinstance(identity, TrialPod) and identity.owns(namespace, study, trial):
        return
    whose = "the refit" if trial == names.REFIT else f"trial {trial}"
    match identity:
        case Operator():
            raise _forbidden(
                f"only the pods of {whose} may use this path; the operator may only send a result"
            )
        case Reader():
            raise _only_records(identity)
        case TrialPod():
            raise _forbidden(f"{identity} does not belong to {whose} of {namespace}/{study}")


def authorize_worker(identity: Identity, namespace: str, study: str, slot: int) -> str:
    """Admit only a pod of this worker; return its name. Raises Forbidden."""
    if isinstance(identity, TrialPod) and identity.owns(namespace, study, names.worker_name(slot)):
        return identity.pod
    match identity:
        case Operator():
            raise _forbidden(f"only the pods of worker {slot} may use this path")
        case Reader():
            raise _only_records(identity)
        case TrialPod():
            raise _forbidden(f"{identity} does not belong to worker {slot} of {namespace}/{study}")


def authorize_trial_or_operator(identity: Identity, namespace: str, study: str, trial: int | str) -> None:
    """Admit the operator and the pods of the trial, or of the REFIT. Raises Forbidden."""
    if not isinstance(identity, Operator):
        authorize_trial(identity, namespace, study, trial)


def authorize_study(identity: Identity, namespace: str, study: str, uid: str | None) -> None:
    """Admit all but pods of another TuningStudy of the same name. Raises Forbidden.

    Args:
        identity: who has been admitted to the trial or to the refit.
        namespace: the study's namespace.
        study: the study's name.
        uid: the uid of the TuningStudy that declared the study last.
    """
    bound = identity.study_uid if isinstance(identity, TrialPod) else None
    if bound is not None and uid is not None and bound != uid:
        raise _forbidden(
            f"{identity} belongs to another TuningStudy {namespace}/{study}, which was deleted (uid {bound})"
        )


def authorize_reader(identity: Identity, namespace: str) -> None:
    """Admit the operator and the readers of a namespace. Raises Forbidden."""
    match identity:
        case TrialPod():
            raise _forbidden(
                f"{identity} may only use the paths of its own trial; to read records, use a token "
                f"not bound to a pod (kubectl create token default -n {namespace} "
                f"--audience={names.TOKEN_AUDIENCE})"
            )
        case Reader() if identity.namespace != namespace:
            raise _forbidden(f"{identity} may only read records of its own namespace, not of {namespace}")


def mint_operator(secret: str, seconds: float = 86_400) -> str:
    """Return a local-mode token of the operator (account `local:operator`)."""
    return _mint(secret, seconds, {"sub": f"{SERVICE_ACCOUNT}{LOCAL_OPERATOR}"})


def mint_pod(
    secret: str, namespace: str, pod: str, seconds: float = 86_400, study_uid: str | None = None
) -> str:
    """Return a local-mode token with the claims of a pod's projected token."""
    claims = {
        "sub": f"{SERVICE_ACCOUNT}{namespace}:default",
        "kubernetes.io": {"namespace": namespace, "pod": {"name": pod}},
    }
    return _mint(secret, seconds, claims | ({"aud": [names.token_audience(study_uid)]} if study_uid else {}))


def mint_reader(secret: str, namespace: str, seconds: float = 86_400) -> str:
    """Return a local-mode token of a reader of the namespace's records."""
    claims = {"namespace": namespace}
    return _mint(secret, seconds, {"sub": f"{SERVICE_ACCOUNT}{namespace}:default", "kubernetes.io": claims})


def unauthenticated(message: str) -> Unauthenticated:
    """Return the error for a missing or invalid token."""
    return Unauthenticated(Problem(field="Authorization", message=message))


def _mint(secret: str, seconds: float, claims: dict[str, Any]) -> str:
    standard = {"iss": LOCAL_ISSUER, "aud": [names.TOKEN_AUDIENCE], "exp": int(time.time() + seconds)}
    return jwt.encode(standard | claims, secret, algorithm="HS256")


def _study_uid(audience: Any) -> str | None:
    """Return the uid of the TuningStudy for whose pods a token was made, if any. Raises Unauthenticated."""
    audiences = audience if isinstance(audience, list) else [audience]
    for one in audiences:
        prefix, slash, uid = str(one).partition("/")
        if prefix == names.TOKEN_AUDIENCE and slash:
            return uid
    if names.TOKEN_AUDIENCE not in audiences:
        raise unauthenticated(f"the token is for another audience: request one for {names.TOKEN_AUDIENCE}")
    return None


def _kid(token: str) -> str | None:
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        raise unauthenticated("the token is not a JSON Web Token") from None
    return kid if isinstance(kid, str) else None


def _reason(error: jwt.PyJWTError, issuer: str) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired: read it again from its file, where Kubernetes renews it"
        case jwt.InvalidIssuerError():
            return f"the token was not issued by {issuer}"
        case jwt.InvalidAlgorithmError():
            return "the token's algorithm does not match its key"
        case jwt.InvalidSignatureError():
            return "the token's signature is invalid"
    return f"the token is invalid: {error}"


def _only_records(reader: Reader) -> Forbidden:
    return _forbidden(f"{reader} may only read the records of its namespace (GET .../record)")


def _forbidden(message: str) -> Forbidden:
    return Forbidden(Problem(field="Authorization", message=message))
