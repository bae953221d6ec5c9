"""Who sends a request, and whether they may: FastAPI dependencies."""

from starlette.requests import Request

from tuning_operator.resource import names
from tuning_operator.studies.auth.tokens import (
    Identity,
    Verifier,
    authorize_either,
    authorize_operator,
    authorize_reader,
    authorize_trial,
    unauthenticated,
)
from tuning_operator.studies.service import Service


async def service_of(request: Request) -> Service:
    """Return what the application serves."""
    service: Service = request.app.state.service
    return service


async def operator(request: Request) -> None:
    """Let only the operator pass. Raises Unauthenticated, Forbidden."""
    authorize_operator(await caller_of(request, request.app.state.service.verifier))


async def pod(request: Request, namespace: str, name: str, number: int) -> None:
    """Let only the trial's own pod pass. Raises Unauthenticated, Forbidden."""
    authorize_trial(await caller_of(request, request.app.state.service.verifier), namespace, name, number)


async def either(request: Request, namespace: str, name: str, number: int) -> None:
    """Let the operator and the trial's own pod pass. Raises Unauthenticated, Forbidden."""
    caller = await caller_of(request, request.app.state.service.verifier)
    authorize_either(caller, namespace, name, number)


async def refit_pod(request: Request, namespace: str, name: str) -> None:
    """Let only the refit's own pod pass. Raises Unauthenticated, Forbidden."""
    authorize_trial(
        await caller_of(request, request.app.state.service.verifier), namespace, name, names.REFIT
    )


async def refit_either(request: Request, namespace: str, name: str) -> Identity:
    """Let the operator and the refit's own pod pass; return which. Raises Unauthenticated, Forbidden."""
    caller = await caller_of(request, request.app.state.service.verifier)
    authorize_either(caller, namespace, name, names.REFIT)
    return caller


async def reader(request: Request, namespace: str) -> None:
    """Let the operator and the namespace's readers pass. Raises Unauthenticated, Forbidden."""
    authorize_reader(await caller_of(request, request.app.state.service.verifier), namespace)


async def caller_of(request: Request, verifier: Verifier) -> Identity:
    """Return who sends a request. Raises Unauthenticated, Unavailable."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("the request has no token: send Authorization: Bearer TOKEN")
    return verifier.known(token) or await verifier.identify(token)
