"""What the paths of the application have in common."""

from typing import Annotated

from fastapi import Depends, Response
from pydantic import BaseModel

from tuning_operator.protocol import StudyKey
from tuning_operator.studies.http.callers import service_of
from tuning_operator.studies.service import Service

STUDY = "/v1/studies/{namespace}/{name}"


async def study_key(namespace: str, name: str) -> StudyKey:
    """Return the study that a path names."""
    return StudyKey(namespace, name)


Served = Annotated[Service, Depends(service_of)]
Study = Annotated[StudyKey, Depends(study_key)]


def reply(model: BaseModel) -> Response:
    """Return a model as the protocol writes it."""
    return Response(model.model_dump_json(by_alias=True), media_type="application/json")
