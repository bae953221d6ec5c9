"""Tokens of service accounts, with real keys: who is let in, as whom, and who is not."""

from __future__ import annotations

import base64
import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tuning_operator.resource.names import REFIT, TOKEN_AUDIENCE, token_audience
from tuning_operator.studies.auth.keyset import REFRESH_SECONDS, Published, PublishedKeys
from tuning_operator.studies.auth.keyset import ApiServer as ClusterKeys
from tuning_operator.studies.auth.tokens import (
    LOCAL_OPERATOR,
    LocalKeys,
    Operator,
    Reader,
    TrialPod,
    Verifier,
    authorize_operator,
    authorize_reader,
    authorize_study,
    authorize_trial,
    authorize_trial_or_operator,
    mint_operator,
    mint_pod,
    mint_reader,
)
from tuning_operator.studies.errors import Forbidden, Unauthenticated, Unavailable

ISSUER = "https://kubernetes.default.svc.cluster.local"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    algorithms = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}
    public = json.loads(algorithms[algorithm].to_jwk(key.public_key()))
    return public | {"kid": kid, "alg": algorithm, "use": "sig"}


class ApiServer:
    """What an API server publishes; counts how often it is asked."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA, "one", "RS256"), jwk(EC, "two", "ES256")]
        self.asked = 0
        self.away = False

    async def fetch(self) -> Published:
        self.asked += 1
        if self.away:
            raise OSError("no route to host")
        return Published(ISSUER, {"keys": self.keys})


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def api_server() -> ApiServer:
    return ApiServer()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(api_server: ApiServer, clock: Clock) -> Verifier:
    return Verifier(PublishedKeys(api_server.fetch, clock), "tuning:operator", clock)


def token(key: Any = RSA, kid: str | None = "one", algorithm: str = "RS256", **changes: Any) -> str:
    """Return a token as the API server makes it for a pod, with changes; None removes a claim."""
    claims = {
        "iss": ISSUER,
        "aud": [TOKEN_AUDIENCE],
        "exp": int(time.time()) + 3600,
        "nbf": int(time.time()),
        "sub": "system:serviceaccount:ml:default",
        "kubernetes.io": {
            "namespace": "ml",
            "pod": {"name": "mnist-3-abcde", "uid": "u"},
            "serviceaccount": {"name": "default", "uid": "u"},
        },
    }
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


async def refusal(verifier: Verifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        await verifier.identify(token)
    return str(refused.value)


async def test_a_pod_is_known_by_its_namespace_and_name(verifier: Verifier) -> None:
    assert await verifier.identify(token()) == TrialPod("ml", "mnist-3-abcde")
    assert await verifier.identify(token(EC, "two", "ES256")) == TrialPod("ml", "mnist-3-abcde")


async def test_the_operator_is_known_by_its_service_account(verifier: Verifier) -> None:
    account = "system:serviceaccount:tuning:operator"
    assert await verifier.identify(token(sub=account)) == Operator(account)
    assert isinstance(await verifier.identify(token(sub="system:serviceaccount:ml:operator")), TrialPod)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"exp": int(time.time()) - 60}, "has expired"),
        ({"aud": ["https://kubernetes.default.svc"]}, f"request one for {TOKEN_AUDIENCE}"),
        ({"aud": None}, "aud"),
        ({"exp": None}, "exp"),
        ({"iss": "https://elsewhere"}, f"not issued by {ISSUER}"),
        ({"key": OTHER_RSA}, "signature is invalid"),
        ({"key": OTHER_RSA, "kid": "three"}, "not signed by this cluster (unknown key)"),
        ({"kid": None}, "not signed by this cluster (unknown key)"),
        ({"kubernetes.io": None}, "belongs neither to a pod nor to a service account"),
        ({"kubernetes.io": {"namespace": "ml", "pod": {"name": 7}}}, "belongs neither to a pod"),
        ({"kubernetes.io": {"namespace": "ml", "pod": None}}, "belongs neither to a pod"),
        ({"kubernetes.io": {"namespace": "prod"}}, "nor to a service account"),
        ({"kubernetes.io": {"namespace": "ml"}, "sub": "someone"}, "nor to a service account"),
        ({"kubernetes.io": {"namespace": "ml"}, "aud": [token_audience("u")]}, "nor to a service account"),
        (
            {
                "sub": "system:serviceaccount:tuning:operator",
                "aud": [token_audience("u")],
                "kubernetes.io": None,
            },
            "nor to a service account",
        ),
        ({"aud": [7, {}]}, f"request one for {TOKEN_AUDIENCE}"),
        ({"aud": f"{TOKEN_AUDIENCE}s"}, f"request one for {TOKEN_AUDIENCE}"),
    ],
)
async def test_an_invalid_token_is_refused_with_the_reason(
    verifier: Verifier, made: dict[str, Any], message: str
) -> None:
    assert message in await refusal(verifier, token(**made))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_that_is_not_valid_yet_can_be_sent_again(
    verifier: Verifier, claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clocks differ: it becomes valid."""
    now = datetime.now(UTC)
    late, soon = (token(**{claim: int(now.timestamp()) + seconds}) for seconds in (11, 9))
    monkeypatch.setattr("jwt.api_jwt.datetime", SimpleNamespace(now=lambda tz: now.astimezone(tz)))
    with pytest.raises(Unavailable, match="the clock of the study server's node is behind"):
        await verifier.identify(late)
    assert isinstance(await verifier.identify(soon), TrialPod)


async def test_a_pod_is_bound_to_its_study_by_the_audience(verifier: Verifier) -> None:
    pod = await verifier.identify(token(aud=[token_audience("uid-1")]))
    assert pod == TrialPod("ml", "mnist-3-abcde", "uid-1")
    authorize_study(pod, "ml", "mnist", "uid-1")
    authorize_study(pod, "ml", "mnist", None)
    with pytest.raises(Forbidden, match=r"another TuningStudy ml/mnist, which was deleted \(uid uid-1\)"):
        authorize_study(pod, "ml", "mnist", "uid-2")
    authorize_study(await verifier.identify(token()), "ml", "mnist", "uid-2")  # of an earlier release


async def test_an_unsigned_token_is_refused(verifier: Verifier) -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one","typ":"JWT"}').rstrip(b"=").decode()
    body = token().split(".")[1]
    assert "algorithm" in await refusal(verifier, f"{header}.{body}.")


async def test_a_public_key_is_no_shared_secret(verifier: Verifier) -> None:
    public = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one","typ":"JWT"}').rstrip(b"=").decode()
    signed = f"{header}.{token().split('.')[1]}"
    import hashlib
    import hmac

    signature = (
        base64.urlsafe_b64encode(hmac.digest(public, signed.encode(), hashlib.sha256)).rstrip(b"=").decode()
    )
    assert "algorithm" in await refusal(verifier, f"{signed}.{signature}")


@pytest.mark.parametrize("nonsense", ["", "x", "a.b.c", "eyJhbGciOiJSUzI1NiJ9"])
async def test_nonsense_is_refused(verifier: Verifier, nonsense: str) -> None:
    assert "not a JSON Web Token" in await refusal(verifier, nonsense)


async def test_a_symmetric_key_among_the_published_ones_is_passed_over(
    verifier: Verifier, api_server: ApiServer
) -> None:
    secret = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    api_server.keys.append({"kty": "oct", "kid": "three", "alg": "HS256", "k": secret})
    assert "unknown key" in await refusal(verifier, token("k" * 32, "three", "HS256"))


async def test_a_known_token_is_good_until_10_seconds_after_its_end(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    end = int(time.time()) + 3600
    made = token(exp=end)
    pod = await verifier.identify(made)
    for now, known in ((end, pod), (end + 9.9, pod), (end + 10, None)):
        clock.now = now
        assert verifier.known(made) == known
    assert api_server.asked == 1


async def test_a_new_token_is_good_until_10_seconds_after_its_end(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So much may the clocks of two machines differ."""
    made = token(exp=2_000_000_000, nbf=None)
    passed = SimpleNamespace(now=lambda tz: datetime.fromtimestamp(2_000_000_000 + after, tz))
    monkeypatch.setattr("jwt.api_jwt.datetime", passed)
    after = 10
    assert "has expired" in await refusal(verifier, made)
    after = 9
    assert isinstance(await verifier.identify(made), TrialPod)


async def test_the_tokens_that_were_checked_last_are_kept_when_there_are_many(
    verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning_operator.studies.auth.tokens.CACHED_TOKENS", 2)
    made = [token(exp=int(clock.now) + seconds) for seconds in (3600, 3601, 3602)]
    for each in made:
        await verifier.identify(each)
        assert verifier.known(each) is not None
    assert [verifier.known(each) is not None for each in made] == [False, True, True]


async def test_new_keys_are_fetched_when_one_shows_up(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    await verifier.identify(token())
    api_server.keys = [jwk(OTHER_RSA, "three", "RS256")]
    clock.now += 4.9
    assert "unknown key" in await refusal(verifier, token(OTHER_RSA, "three"))
    clock.now += 0.1
    assert isinstance(await verifier.identify(token(OTHER_RSA, "three")), TrialPod)
    assert api_server.asked == 2


async def test_a_new_key_that_cannot_be_fetched_now_can_be_sent_again(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    await verifier.identify(token())
    api_server.keys.append(jwk(OTHER_RSA, "three", "RS256"))
    api_server.away = True
    clock.now += REFRESH_SECONDS
    for _ in range(2):
        with pytest.raises(Unavailable, match="no route to host"):
            await verifier.identify(token(OTHER_RSA, "three"))
    api_server.away = False
    clock.now += REFRESH_SECONDS
    assert isinstance(await verifier.identify(token(OTHER_RSA, "three")), TrialPod)


async def test_keys_are_fetched_again_after_an_hour(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    """A key that the API server has withdrawn is good for no longer."""
    clock.now = 0
    await verifier.identify(token())
    api_server.keys = []
    clock.now = 3600
    await verifier.identify(token(exp=int(time.time()) + 60))
    assert api_server.asked == 1
    clock.now = 3600.1
    assert "unknown key" in await refusal(verifier, token(exp=int(time.time()) + 61))


async def test_invented_key_ids_do_not_make_the_server_ask_again_and_again(
    verifier: Verifier, api_server: ApiServer
) -> None:
    for number in range(5):
        await refusal(verifier, token(kid=f"invented-{number}"))
    assert api_server.asked == 1


async def test_old_keys_serve_while_the_api_server_is_away(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    await verifier.identify(token())
    api_server.away = True
    clock.now += 2 * 3600
    await verifier.identify(token(exp=int(clock.now) + 60))
    assert api_server.asked == 2


async def test_without_any_keys_the_server_is_unavailable(
    verifier: Verifier, api_server: ApiServer, clock: Clock
) -> None:
    api_server.away = True
    for _ in range(2):
        with pytest.raises(Unavailable, match="no route to host"):
            await verifier.identify(token())
    assert api_server.asked == 1
    api_server.away = False
    clock.now += REFRESH_SECONDS
    assert isinstance(await verifier.identify(token()), TrialPod)


def test_local_tokens_are_good_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "thirty-two bytes or more of a secret"
    monkeypatch.setattr("tuning_operator.studies.auth.tokens.time", SimpleNamespace(time=lambda: 1000.0))
    for made in (mint_operator(secret), mint_pod(secret, "ml", "mnist-3-x"), mint_reader(secret, "ml")):
        assert jwt.decode(made, options={"verify_signature": False})["exp"] == 1000 + 86_400
    made = mint_reader(secret, "ml", seconds=60)
    assert jwt.decode(made, options={"verify_signature": False})["exp"] == 1060


async def test_local_tokens() -> None:
    secret = "thirty-two bytes or more of a secret"
    verifier = Verifier(LocalKeys(secret), LOCAL_OPERATOR)
    assert isinstance(await verifier.identify(mint_operator(secret)), Operator)
    assert await verifier.identify(mint_pod(secret, "ml", "mnist-3-abcde")) == TrialPod("ml", "mnist-3-abcde")
    assert await verifier.identify(mint_reader(secret, "ml")) == Reader("ml", "default")
    assert "signature is invalid" in await refusal(
        verifier, mint_operator("another secret of the same length!!!")
    )
    assert "has expired" in await refusal(verifier, mint_operator(secret, seconds=-60))
    assert "algorithm" in await refusal(verifier, token())


class Discovery(BaseHTTPRequestHandler):
    """The two paths of an API server, for those who show a token."""

    def do_GET(self) -> None:
        replies = {
            "/.well-known/openid-configuration": {"issuer": ISSUER, "jwks_uri": "https://elsewhere/jwks"},
            "/openid/v1/jwks": {"keys": [jwk(RSA, "one", "RS256")]},
        }
        known = self.headers["Authorization"] == "Bearer own-token"
        self.send_response(200 if known and self.path in replies else 403)
        self.end_headers()
        self.wfile.write(json.dumps(replies.get(self.path)).encode())

    def log_message(self, *_: Any) -> None:
        """The tests' output stays clean."""


async def test_keys_and_issuer_are_what_the_api_server_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment names a proxy, which can't reach the API server."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    own = tmp_path / "token"
    own.write_text("own-token\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Discovery) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        verifier = Verifier(PublishedKeys(ClusterKeys(url, own, Path(certifi.where()), None).fetch), "a:b")
        assert isinstance(await verifier.identify(token()), TrialPod)
        other = ClusterKeys(url, own, Path(certifi.where()), "https://configured")
        assert "not issued by https://configured" in await refusal(
            Verifier(PublishedKeys(other.fetch), "a:b"), token()
        )
        own.write_text("stale")
        with pytest.raises(Unavailable, match="403"):
            await Verifier(PublishedKeys(other.fetch), "a:b").identify(token())
        server.shutdown()


@pytest.mark.parametrize(
    ("namespace", "pod", "own"),
    [
        ("ml", "mnist-3-abcde", True),
        ("other", "mnist-3-abcde", False),
        ("ml", "mnist-31-abcde", False),
        ("ml", "mnist-1-3-abcde", False),
        ("ml", "mnist-3-3-abcde", False),
        ("ml", "mnist-3", False),
        ("ml", "mnist-3-abcde-fghij", False),
        ("ml", "amnist-3-abcde", False),
        ("ml", "mnist-03-abcde", False),
        ("ml", "", False),
    ],
)
def test_a_pod_speaks_for_its_own_trial_only(namespace: str, pod: str, own: bool) -> None:
    identity = TrialPod(namespace, pod)
    for authorize in (authorize_trial, authorize_trial_or_operator):
        if own:
            authorize(identity, "ml", "mnist", 3)
        else:
            with pytest.raises(Forbidden, match="does not belong to trial 3 of ml/mnist"):
                authorize(identity, "ml", "mnist", 3)
    with pytest.raises(Forbidden):
        authorize_operator(identity)


async def test_a_service_account_whose_token_is_bound_to_no_pod_reads_its_namespaces_records(
    verifier: Verifier,
) -> None:
    """As `kubectl create token` makes it, also when bound to something else than a pod."""
    for claims in ({}, {"serviceaccount": {"name": "default"}}, {"secret": {"name": "s"}}):
        made = token(**{"kubernetes.io": {"namespace": "ml", **claims}})
        identity = await verifier.identify(made)
        assert identity == Reader("ml", "default")
    authorize_reader(identity, "ml")
    for refused, message in (
        (
            lambda: authorize_reader(identity, "prod"),
            "may only read records of its own namespace, not of prod",
        ),
        (lambda: authorize_operator(identity), "may only read the records of its namespace"),
        (lambda: authorize_trial(identity, "ml", "mnist", 3), "may only read the records of its namespace"),
        (
            lambda: authorize_trial_or_operator(identity, "ml", "mnist", REFIT),
            "may only read the records of its namespace",
        ),
    ):
        with pytest.raises(Forbidden, match=message):
            refused()


async def test_no_pod_reads_records(verifier: Verifier) -> None:
    for claims in (
        {"pod": {"name": "mnist-3-abcde"}},
        {"pod": {"name": "notebook"}, "serviceaccount": {"name": "default"}},
    ):
        pod = await verifier.identify(token(**{"kubernetes.io": {"namespace": "ml", **claims}}))
        with pytest.raises(Forbidden, match="kubectl create token default -n ml"):
            authorize_reader(pod, "ml")
    authorize_reader(Operator("system:serviceaccount:tuning:operator"), "ml")


def test_a_pod_of_the_refit_speaks_for_the_refit_only() -> None:
    of_refit = TrialPod("ml", "mnist-refit-abcde")
    authorize_trial(of_refit, "ml", "mnist", REFIT)
    authorize_trial_or_operator(of_refit, "ml", "mnist", REFIT)
    for namespace, study, trial in (("ml", "mnist", 1), ("prod", "mnist", REFIT), ("ml", "mnist-refit", 1)):
        with pytest.raises(Forbidden):
            authorize_trial(of_refit, namespace, study, trial)
    for pod in ("mnist-1-abcde", "mnist-refit-1-abcde", "mnist-1-refit-abcde", "mnist-refit"):
        with pytest.raises(Forbidden, match="does not belong to the refit of ml/mnist"):
            authorize_trial(TrialPod("ml", pod), "ml", "mnist", REFIT)


def test_a_study_whose_name_begins_like_another_is_another() -> None:
    """Pods of trial 1 of `mnist-1` are named mnist-1-1-...; those of trial 1 of `mnist`, mnist-1-..."""
    of_prefixed = TrialPod("ml", "mnist-1-1-abcde")
    authorize_trial(of_prefixed, "ml", "mnist-1", 1)
    with pytest.raises(Forbidden):
        authorize_trial(of_prefixed, "ml", "mnist", 1)
    with pytest.raises(Forbidden):
        authorize_trial(TrialPod("ml", "mnist-1-abcde"), "ml", "mnist-1", 1)


def test_the_operator_may_record_results_but_not_act_as_a_trial() -> None:
    operator = Operator("system:serviceaccount:tuning:operator")
    authorize_operator(operator)
    authorize_trial_or_operator(operator, "ml", "mnist", 3)
    with pytest.raises(Forbidden, match="only the pods of trial 3 may use this path"):
        authorize_trial(operator, "ml", "mnist", 3)
