"""The `tuning-operator` command: starts the processes of the system."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a pod log is no terminal
    help="Tune models on Kubernetes with Optuna.",
)


@app.command()
def operator() -> None:
    """Run the operator: watches TuningStudy resources and runs their trials as Jobs (settings: TUNING_*)."""
    from tuning_operator.kube.main import run  # here: neither process loads the other's libraries

    run()


@app.command()
def studies() -> None:
    """Run the study server: serves Optuna studies from Postgres over HTTP (settings: TUNING_*)."""
    from tuning_operator.studies.server import run

    run()
