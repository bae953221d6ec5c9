"""The command `tuning-operator`, which starts the processes."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # logs are not a terminal
    help="Tune models on Kubernetes with Optuna.",
)


@app.command()
def operator() -> None:
    """Run the operator, which runs the trials of TuningStudies as Jobs. Settings are TUNING_* variables."""
    from tuning_operator.kube.main import run  # here, so that neither process imports the other's libraries

    run()


@app.command()
def studies() -> None:
    """Run the study server, which serves Optuna studies over HTTP. Settings are TUNING_* variables."""
    from tuning_operator.studies.server import run

    run()
