"""How a study's record is had: through the API server to the study server, with the user's own rights."""

import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from tuning_operator.cli.errors import PluginError
from tuning_operator.cli.kubectl import Kubectl, KubectlError
from tuning_operator.protocol import FinishedStudy
from tuning_operator.resource import names

ACCOUNT = "default"
"""The service account whose token is shown: any of the study's namespace will do, and each has this one."""
TOKEN_DURATION = "10m"  # noqa: S105  the shortest that Kubernetes gives
ANSWER_SECONDS = 120.0
"""The record of 20,000 trials is tens of megabytes, and comes through the API server."""

_HOST = re.compile(r"(?:(?P<pod>[^.]+)\.)?(?P<service>[^.]+)\.(?P<namespace>[^.]+)\.svc(?:\..+)?")


@dataclass(frozen=True)
class Address:
    """Where the study server is, as pods know it."""

    url: str
    ca: str | None
    """PEM of the authority behind its certificate."""

    @property
    def host(self) -> str:
        """The name in its certificate."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port that it serves."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def target(self) -> tuple[str, str]:
        """Return (namespace, target) for `kubectl port-forward`: the Service, or one pod of it.

        Raises:
            PluginError: it is no Service of the cluster.
        """
        found = _HOST.fullmatch(self.host)
        if found is None:
            raise PluginError(f"the study server's address {self.url} is no Service of the cluster")
        target = f"pod/{found['pod']}" if found["pod"] else f"service/{found['service']}"
        return found["namespace"], target


def fetch_record(kubectl: Kubectl, namespace: str, study: str) -> FinishedStudy:
    """Return all that the record holds of a study. Raises PluginError, with the mend."""
    kubectl = kubectl.within(namespace)
    address = find_address(kubectl, study)
    token = _token(kubectl, namespace)
    server_namespace, target = address.target()
    try:
        with kubectl.within(server_namespace).port_forward(target, address.port) as port:
            return _get(address, port, token, f"/v1/studies/{namespace}/{study}/record")
    except KubectlError as error:
        raise _way_barred(error, server_namespace) from None


def find_address(kubectl: Kubectl, study: str) -> Address:
    """Return the address that the study's own pods are given. Raises PluginError."""
    label = f"--selector={names.LABEL_STUDY}={study}"
    found = [
        config
        for config in kubectl.json("get", "configmaps", label)["items"]
        if config["metadata"]["name"].startswith(f"{study}-trainer-") and "server-url" in config["data"]
    ]
    if not found:
        raise PluginError(
            f"no ConfigMap {study}-trainer-... says where the study server is: it comes with the next trial "
            f"(see `kubectl tuning best {study}`)"
        )
    newest = max(found, key=lambda config: str(config["metadata"]["creationTimestamp"]))
    return Address(newest["data"]["server-url"], newest["data"].get("ca.crt"))


def _token(kubectl: Kubectl, namespace: str) -> str:
    audience, duration = f"--audience={names.TOKEN_AUDIENCE}", f"--duration={TOKEN_DURATION}"
    try:
        return kubectl.run("create", "token", ACCOUNT, audience, duration).strip()
    except KubectlError as error:
        if not error.forbidden:
            raise
        raise PluginError(
            f"{error}\nYou need the right to make a token of the namespace's service account `{ACCOUNT}`:\n"
            f"  kubectl create role tuning-reader -n {namespace} --verb=create "
            f"--resource=serviceaccounts/token --resource-name={ACCOUNT}\n"
            f"  kubectl create rolebinding tuning-reader -n {namespace} --role=tuning-reader --user=YOU"
        ) from None


def _way_barred(error: KubectlError, namespace: str) -> PluginError:
    if error.forbidden:
        return PluginError(
            f"{error}\nYou need the right to reach the study server through the API server. In namespace "
            f"{namespace}: get services, get and list pods, create pods/portforward"
        )
    if error.not_found:
        return PluginError(f"{error}\nThe study server is not there any more: was the operator removed?")
    return PluginError(
        f"{error}\nThe study server is not ready: look at `kubectl get pods -n {namespace}`, then try again"
    )


def _get(address: Address, port: int, token: str, path: str) -> FinishedStudy:
    secure = urlsplit(address.url).scheme == "https"
    url = f"{'https' if secure else 'http'}://127.0.0.1:{port}{path}"
    headers = {"Host": f"{address.host}:{address.port}", "Authorization": f"Bearer {token}"}
    # The certificate is the Service's, whatever the local address is. No proxy: the way is kubectl's.
    extensions = {"sni_hostname": address.host} if secure else {}
    verify = ssl.create_default_context(cadata=address.ca)
    try:
        with httpx.Client(verify=verify, timeout=ANSWER_SECONDS, trust_env=False) as client:
            return _record(client.get(url, headers=headers, extensions=extensions))
    except httpx.TransportError as error:
        raise PluginError(
            f"the study server {address.host} cannot be spoken with: {error or type(error).__name__}"
            f"{_certificate_hint(error)}"
        ) from None


def _certificate_hint(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return ": is it ready?"
    return (
        "\nIts certificate is not of the authority that the study's ConfigMap holds. If the certificate was "
        "renewed since the last trial, raise maxTrials: the next trial brings the new authority"
    )


def _record(response: httpx.Response) -> FinishedStudy:
    if response.status_code != httpx.codes.OK:
        raise PluginError(f"the study server answers {response.status_code}: {_detail(response)}")
    try:
        return FinishedStudy.model_validate_json(response.content)
    except ValidationError as error:
        raise PluginError(
            "the study server's record is not as this plugin knows it: install the plugin of the operator's "
            f"version ({error.errors()[0]['msg']})"
        ) from None


def _detail(response: httpx.Response) -> str:
    try:
        body: Any = response.json()
        return str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or response.reason_phrase
