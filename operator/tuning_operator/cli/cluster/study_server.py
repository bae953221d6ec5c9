"""Fetches a study's record from the study server, through the API server and with the user's permissions."""

import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from tuning_operator.cli import NotFoundError, NotPermittedError, NotReachableError, PluginError
from tuning_operator.cli.cluster.kubectl import Kubectl, KubectlError
from tuning_operator.protocol import FinishedStudy, Records, RecordSummary
from tuning_operator.resource import names

ACCOUNTS = ("tuning-reader", "default")
"""The service accounts whose token is used, in this order. Any of the study's namespace works: the first is
for users who may only read, the second always exists."""
TOKEN_DURATION = "10m"  # noqa: S105  the shortest that Kubernetes allows
REPLY_SECONDS = 120.0
"""A record of 20,000 trials is tens of megabytes, sent through the API server."""

T = TypeVar("T", bound=BaseModel)

_HOST = re.compile(r"(?:(?P<pod>[^.]+)\.)?(?P<service>[^.]+)\.(?P<namespace>[^.]+)\.svc(?:\..+)?")


class UnauthenticatedError(PluginError):
    """The study server does not accept the token."""


@dataclass(frozen=True)
class Address:
    """Address of the study server, as pods use it."""

    url: str
    ca: str | None
    """PEM certificate of its CA."""

    @property
    def host(self) -> str:
        """The host name in its certificate."""
        return urlsplit(self.url).hostname or ""

    @property
    def secure(self) -> bool:
        """Whether it uses TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return urlsplit(self.url).port or (443 if self.secure else 80)

    def target(self) -> tuple[str, str]:
        """Return (namespace, target) for `kubectl port-forward`: the Service, or one pod of it.

        Raises:
            PluginError: it is not a Service of the cluster.
        """
        found = _HOST.fullmatch(self.host)
        if found is None:
            raise PluginError(f"the study server's address {self.url} is not a Service of this cluster")
        target = f"pod/{found['pod']}" if found["pod"] else f"service/{found['service']}"
        return found["namespace"], target


class StudyServer:
    """A connection to the study server."""

    def __init__(self, client: httpx.Client, address: Address) -> None:
        self._client, self._address = client, address

    def get(self, path: str, model: type[T], token: str, **parameters: int) -> T:
        """Return what the server has under a path. Raises PluginError."""
        # The certificate is for the Service, not the local address.
        extensions = {"sni_hostname": self._address.host} if self._address.secure else {}
        headers = {"Authorization": f"Bearer {token}"}
        try:
            response = self._client.get(path, params=parameters, headers=headers, extensions=extensions)
        except httpx.TransportError as error:
            raise NotReachableError(
                f"can't connect to the study server {self._address.host}: {error or type(error).__name__}"
                f"{_certificate_hint(error)}"
            ) from None
        return _read(response, model)


class ServedRecord:
    """The record of a study, read from the study server for as long as the connection lasts."""

    def __init__(self, server: StudyServer, path: str, make_token: Callable[[], str]) -> None:
        self._server, self._path, self._make_token = server, path, make_token
        self._token = make_token()

    def read(self, first: int = 0) -> FinishedStudy:
        """Return the trials from this number on. Raises PluginError."""
        try:
            return self._read(first)
        except UnauthenticatedError:  # a study runs for longer than a token is valid
            self._token = self._make_token()
            return self._read(first)

    def _read(self, first: int) -> FinishedStudy:
        parameters = {"first": first} if first else {}
        return self._server.get(self._path, FinishedStudy, self._token, **parameters)


@contextlib.contextmanager
def served_record(kubectl: Kubectl, namespace: str, study: str) -> Iterator[ServedRecord]:
    """Connect to the record of a study. Raises PluginError with a fix."""
    kubectl = kubectl.within(namespace)
    address = find_address(kubectl, study)
    with _connected(kubectl, address) as server:
        path = f"/v1/studies/{namespace}/{study}/record"
        yield ServedRecord(server, path, partial(_token, kubectl, namespace))


@contextlib.contextmanager
def served_records(kubectl: Kubectl, address: Address) -> Iterator[Callable[[str], Sequence[RecordSummary]]]:
    """Connect to the study server; yields a function that returns the records of a namespace."""
    with _connected(kubectl, address) as server:

        def read(namespace: str) -> Sequence[RecordSummary]:
            token = _token(kubectl.within(namespace), namespace)
            return server.get(f"/v1/studies/{namespace}", Records, token).records

        yield read


@contextlib.contextmanager
def _connected(kubectl: Kubectl, address: Address) -> Iterator[StudyServer]:
    server_namespace, target = address.target()
    verify = ssl.create_default_context(cadata=address.ca)
    headers = {"Host": f"{address.host}:{address.port}"}
    with contextlib.ExitStack() as connection:
        try:
            forwarded = kubectl.within(server_namespace).port_forward(target, address.port)
            port, _ = connection.enter_context(forwarded)
        except KubectlError as error:
            raise _connection_error(error, server_namespace) from None
        base = f"{'https' if address.secure else 'http'}://127.0.0.1:{port}"
        # No proxy, since kubectl forwards the port.
        client = httpx.Client(
            base_url=base, headers=headers, verify=verify, timeout=REPLY_SECONDS, trust_env=False
        )
        connection.enter_context(client)
        yield StudyServer(client, address)


def find_address(kubectl: Kubectl, study: str) -> Address:
    """Return the address that the study's pods use. Raises PluginError."""
    label = f"--selector={names.LABEL_STUDY}={study}"
    configs = kubectl.json("get", "configmaps", label)["items"]
    own = [one for one in configs if one["metadata"]["name"].startswith(f"{study}-trainer-")]
    address = _newest(kubectl, own)
    if address is None:
        raise NotFoundError(
            f"the ConfigMap {study}-trainer-... with the study server's address does not exist: the operator "
            f"creates it when it has accepted the study (see `kubectl tuning best {study}`)"
        )
    return address


def any_address(kubectl: Kubectl) -> Address:
    """Return the address that pods of some study use, of this namespace if possible. Raises PluginError."""
    for scope in ([], ["--all-namespaces"]):
        try:
            configs = kubectl.json("get", "configmaps", *scope, f"--selector={names.LABEL_STUDY}")["items"]
        except KubectlError as error:
            if not scope or not error.forbidden:
                raise
            configs = []  # not permitted in other namespaces
        if address := _newest(kubectl, configs):
            return address
    raise NotFoundError(
        "the study server's address is not known, because there is no TuningStudy in this namespace. Create "
        "one, which may be suspended, and try again"
    )


def _newest(kubectl: Kubectl, configs: Sequence[Any]) -> Address | None:
    found = [config for config in configs if "server-url" in config.get("data", {})]
    if not found:
        return None
    newest = max(found, key=lambda config: str(config["metadata"]["creationTimestamp"]))
    data = newest["data"]
    if name := data.get("ca-config-map"):
        data |= kubectl.within(newest["metadata"]["namespace"]).json("get", "configmap", name)["data"]
    return Address(data["server-url"], data.get("ca.crt"))


def _token(kubectl: Kubectl, namespace: str) -> str:
    options = (f"--audience={names.TOKEN_AUDIENCE}", f"--duration={TOKEN_DURATION}")
    refusals = []
    for account in ACCOUNTS:
        try:
            return kubectl.run("create", "token", account, *options).strip()
        except KubectlError as error:
            if not (error.forbidden or error.not_found):
                raise
            refusals.append(error)
    if not refusals[-1].forbidden:
        raise refusals[-1]
    raise NotPermittedError(
        f"{refusals[-1]}\nYou need permission to create a token for the service account `{ACCOUNTS[0]}` in "
        f"namespace {namespace}. An administrator grants it:\n"
        f"  kubectl create serviceaccount {ACCOUNTS[0]} -n {namespace}\n"
        f"  kubectl create role tuning-reader -n {namespace} --verb=create "
        f"--resource=serviceaccounts/token --resource-name={ACCOUNTS[0]}\n"
        f"  kubectl create rolebinding tuning-reader -n {namespace} --role=tuning-reader --user=YOU"
    )


def _connection_error(error: KubectlError, namespace: str) -> PluginError:
    if error.forbidden:
        return NotPermittedError(
            f"{error}\nYou need permission to reach the study server through the API server. In namespace "
            f"{namespace}: get services, get and list pods, create pods/portforward"
        )
    if error.not_found:
        return NotReachableError(f"{error}\nThe study server does not exist: was the operator removed?")
    return NotReachableError(
        f"{error}\nThe study server is not ready: check `kubectl get pods -n {namespace}` and try again"
    )


def _certificate_hint(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return ". Is it ready?"
    return (
        "\nIts certificate was not issued by the CA in the namespace's ConfigMap. If the CA has just "
        "changed, try again in a few minutes: the operator updates the ConfigMap"
    )


def _read(response: httpx.Response, model: type[T]) -> T:
    if response.status_code != httpx.codes.OK:
        errors = {
            401: UnauthenticatedError,
            403: NotPermittedError,
            404: NotFoundError,
            503: NotReachableError,
        }
        kind = errors.get(response.status_code, PluginError)
        raise kind(f"the study server replied {response.status_code}: {_detail(response)}")
    try:
        return model.model_validate_json(response.content, extra="ignore")
    except ValidationError as error:
        raise PluginError(
            "this version of the plugin can't read the record: install the operator's version of it "
            f"({error.errors()[0]['msg']})"
        ) from None


def _detail(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
        return str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or response.reason_phrase
