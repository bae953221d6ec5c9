"""The commands that need a cluster: `apply`, `doctor` and `dashboard`."""

import contextlib
import time
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from tuning_operator.cli import NotFoundError, NotReachableError, PluginError
from tuning_operator.cli.cluster.kubectl import KubectlError
from tuning_operator.cli.cluster.studies import ClusterStudies
from tuning_operator.cli.commands.validate import check, check_files

KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
ACCEPTED_SECONDS = 15.0


def apply(
    studies: ClusterStudies,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Manifest, or folder with manifests or a kustomization.")
    ],
) -> None:
    """Check a study's manifest, apply it, and wait until it is accepted.

    A folder with a kustomization.yaml is applied as with `kubectl apply -k`.

    Examples:

        {program} apply study.yaml

        {program} apply examples/mnist
    """
    if file == "-":
        raise typer.BadParameter("use a file or a folder", param_hint="FILE")
    kustomized = any((Path(file) / name).is_file() for name in KUSTOMIZATIONS)
    if kustomized:  # it may leave out manifests of the folder, include others, and change names
        checked = check([(f"kubectl kustomize {file}", studies.kubectl.run("kustomize", file))], file)
    else:
        checked = check_files(file)
    typer.echo(studies.kubectl.run("apply", "--kustomize" if kustomized else "--filename", file).rstrip())
    for name in dict.fromkeys(name for name, _ in checked):
        _wait_until_accepted(studies, name)


def _wait_until_accepted(studies: ClusterStudies, name: str) -> None:
    study, deadline = _applied(studies, name), time.monotonic() + ACCEPTED_SECONDS
    while (condition := _accepted(study)) is None:
        if time.monotonic() > deadline:
            raise PluginError(
                f"{name} has not been processed by the operator yet; `{studies.program} doctor` says why"
            )
        time.sleep(0.5)
        study = _applied(studies, name)
    if condition["status"] != "True":
        raise PluginError(f"{name} is not accepted: {condition['message']}")
    typer.echo(f"{name} is accepted. To follow it: {studies.program} watch {name}")


def _applied(studies: ClusterStudies, name: str) -> Any:
    try:
        return studies.get(name)
    except NotFoundError:
        raise NotFoundError(
            f"{name} was applied to a namespace other than the context's: use -n to follow it there"
        ) from None


def _accepted(study: Any) -> Any:
    """Return the condition Accepted of the current generation."""
    generation = study["metadata"].get("generation")
    conditions = study.get("status", {}).get("conditions") or []
    return next(
        (c for c in conditions if c["type"] == "Accepted" and c.get("observedGeneration") == generation), None
    )


def doctor(studies: ClusterStudies) -> None:
    """Find out what keeps studies from running: the CRD, operator, database, GPUs, quota, images, ...

    The exit code is 1 if something is wrong.

    Examples:

        {program} doctor -n ml
    """
    from rich.text import Text

    from tuning_operator.cli.cluster.health import findings
    from tuning_operator.cli.text.grid import console

    out, wrong = console(), 0
    for finding in findings(studies.kubectl):
        mark, style = {True: ("ok", "green"), False: ("FAIL", "bold red"), None: ("note", "yellow")}[
            finding.good
        ]
        out.print(Text(f"{mark:<6}", style) + Text(f"{finding.name}: ", "bold") + Text(finding.message))
        if finding.fix:
            out.print(Text(f"       {finding.fix}"))
        wrong += finding.good is False
    if wrong:
        raise typer.Exit(1)


def dashboard(
    studies: ClusterStudies,
    port: Annotated[int, typer.Option(help="Local port; 0 for any.")] = 8080,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open optuna-dashboard, if the chart was installed with dashboard.enabled=true, until Ctrl-C.

    The command looks for it in the given namespace, then in all namespaces.

    Examples:

        {program} dashboard --port 9000 --no-browser

        {program} dashboard --namespace tuning-system
    """
    from tuning_operator.cli.cluster.health import CHART, COMPONENT

    label = f"--selector={CHART},{COMPONENT}=dashboard"
    services = studies.kubectl.json("get", "services", label)["items"] if studies.kubectl.namespace else []
    services = services or studies.kubectl.json("get", "services", "--all-namespaces", label)["items"]
    if not services:
        raise NotFoundError(
            "the dashboard is not installed: upgrade the chart with --set dashboard.enabled=true, or open an "
            f"export of the study: `{studies.program} export STUDY`, then `optuna-dashboard STUDY.db`"
        )
    if len(services) > 1:
        namespaces = ", ".join(service["metadata"]["namespace"] for service in services)
        raise PluginError(f"there are several dashboards: choose one with --namespace ({namespaces})")
    metadata = services[0]["metadata"]
    kubectl = studies.kubectl.within(metadata["namespace"])
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            kubectl.port_forward(f"service/{metadata['name']}", 80, local=port) as (found, forwarding),
        ):
            typer.echo(f"http://127.0.0.1:{found}/dashboard (Ctrl-C ends the connection)")
            if browser:
                webbrowser.open(f"http://127.0.0.1:{found}/dashboard")
            forwarding.wait()
            raise NotReachableError("the connection to the dashboard was lost: run the command again")
    except KubectlError as error:
        if "unable to listen" in error.stderr.lower():
            raise PluginError(f"port {port} can't be used: choose another with --port (0: any)") from None
        raise
