"""A real API server for the tests: dry runs and refusals, and kubectl."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from tuning_operator.resource import names

SETUP_MAY_BUILD = pytest.mark.timeout(900, func_only=True)
"""On a fresh machine, the API server is built first, which takes minutes."""

NAMESPACE = "default"
_UNCHECKED = "some validation rules were not checked because the object was invalid"


@dataclass(frozen=True)
class Cause:
    """One reason of a refusal."""

    field: str
    message: str


def _refusal(error: ApiException) -> list[Cause]:
    """Return why the server refused, without its note that errors of the schema prevent checking rules."""
    status = json.loads(error.body)
    details = status.get("details", {}).get("causes", [{"message": status["message"]}])
    causes = [Cause(cause.get("field", ""), cause["message"]) for cause in details]
    return [cause for cause in causes if _UNCHECKED not in cause.message]


@dataclass(frozen=True)
class Api:
    """The server, through its client library and through kubectl."""

    objects: client.CustomObjectsApi
    kubectl_path: str
    kubeconfig: Path

    def create(self, manifest: dict[str, Any], **options: Any) -> dict[str, Any]:
        created: dict[str, Any] = self.objects.create_namespaced_custom_object(
            names.GROUP,
            names.VERSION,
            NAMESPACE,
            names.PLURAL,
            manifest,
            field_validation="Strict",
            **options,
        )
        return created

    def causes(self, manifest: dict[str, Any]) -> list[Cause]:
        """Try to create the study; return why it was refused, nothing if it was not."""
        try:
            self.create(manifest, dry_run="All")
        except ApiException as error:
            return _refusal(error)
        return []

    def causes_of_change(self, manifest: dict[str, Any]) -> list[Cause]:
        """Try to replace the study that has the manifest's name."""
        name = manifest["metadata"]["name"]
        try:
            self.objects.replace_namespaced_custom_object(
                names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, name, manifest, dry_run="All"
            )
        except ApiException as error:
            return _refusal(error)
        return []

    def patch_status(self, name: str, status: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """Write the status as the operator does."""
        written: dict[str, Any] = self.objects.patch_namespaced_custom_object_status(
            names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, name, {"status": status, **rest}
        )
        return written

    @contextlib.contextmanager
    def created(self, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Create the study, and delete it at the end."""
        created = self.create(manifest)
        try:
            yield created
        finally:
            self.objects.delete_namespaced_custom_object(
                names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, created["metadata"]["name"]
            )

    def kubectl(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [self.kubectl_path, "--kubeconfig", str(self.kubeconfig), "-n", NAMESPACE, *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=240, check=False)

    def expect(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl, which must succeed; return what it printed."""
        done = self.kubectl(*args, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
        return done.stdout
