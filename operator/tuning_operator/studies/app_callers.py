"""Who sends a request, and whether they may: FastAPI dependencies."""

from fastapi import Request

from tuning_operator.studies.service import Service
from tuning_operator.studies.tokens import (
    Identity,
    authorize_either,
    authorize_operator,
    authorize_trial,
    unauthenticated,
)


async def service_of(request: Request) -> Service:
    """Return what the application serves."""
    service: Service = request.app.state.service
    return service


async def operator(request: Request) -> None:
    """Let only the operator pass. Raises Unauthenticated, Forbidden."""
    authorize_operator(await _caller(request))


async def pod(request: Request, namespace: str, name: str, number: int) -> None:
    """Let only the trial's own pod pass. Raises Unauthenticated, Forbidden."""
    authorize_trial(await _caller(request), namespace, name, number)


async def either(request: Request, namespace: str, name: str, number: int) -> None:
    """Let the operator and the trial's own pod pass. Raises Unauthenticated, Forbidden."""
    authorize_either(await _caller(request), namespace, name, number)


async def _caller(request: Request) -> Identity:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise unauthenticated("the request has no token: send Authorization: Bearer TOKEN")
    service: Service = request.app.state.service
    return service.verifier.known(token) or await service.verifier.identify(token)
