"""The settings of the operator process, from environment variables with the prefix TUNING_."""

import socket
import uuid
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """The operator's settings; each is an environment variable, for example TUNING_TOKEN_FILE."""

    model_config = SettingsConfigDict(env_prefix="TUNING_", frozen=True)

    study_server_urls: list[str] = Field(
        min_length=1,
        description="JSON list of the study servers' addresses by their ordinals, for the operator and for "
        "trial pods.",
    )
    study_server_ca_file: Path | None = Field(
        None,
        description="PEM file of the CA that signed the study server's certificate, "
        "read again when it changes. Unset: the system's CAs.",
    )
    token_file: Path = Field(
        description="The operator's token for the study server; read for each request, since it is rotated."
    )
    namespaces: list[str] = Field(
        default_factory=list,
        description='JSON list of the namespaces to serve, such as `["ml"]`. Empty: all namespaces.',
    )
    installation: str = Field(
        "default/tuning-operator",
        pattern=r"^[^/]+/[^/]+$",
        description="NAMESPACE/NAME of this installation, recorded in the status of the studies that it "
        "serves. Another installation that watches the same namespace leaves them alone.",
    )
    study_server_pods: list[Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]] = Field(
        default_factory=list,
        description="JSON list of the study servers' pods, each as NAMESPACE/NAME, to be replaced if their "
        "node is lost.",
    )
    lease: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+$",
        description="NAMESPACE/NAME of the Lease whose holder is the leader: of several operators with the "
        "same Lease, only the leader works. Unset: this is the only operator.",
    )
    identity: str = Field(
        default_factory=lambda: f"{socket.gethostname()}_{uuid.uuid4()}",
        description="The name of this process in the Lease; the pod's name, so that a container that is "
        "restarted continues as the leader.",
    )
    trainer_image: str | None = Field(
        None, description="The image of trials whose template names none. Unset: a template must name one."
    )
    gpu_resource: str = Field(
        "nvidia.com/gpu", description="The resource that `trial.gpus` counts, such as amd.com/gpu."
    )
    workers: int = Field(4, ge=1, description="Number of studies reconciled at the same time.")
    max_trials_per_namespace: int = Field(
        0,
        ge=0,
        description="How many trials may run at the same time in a namespace, over all of its studies. "
        "0: no limit.",
    )
    resync_seconds: float = Field(
        180,
        gt=0,
        description="Each study gets a pass at least this often, even if no event came; those that are over "
        "once an hour.",
    )
    stuck_seconds: float = Field(
        300,
        gt=0,
        description="/healthz fails when studies have waited this long without a pass finishing.",
    )
    probe_host: str = Field(
        "", description="Address that /healthz and /metrics listen on. Empty: all, of IPv4 and of IPv6."
    )
    probe_port: int = Field(8081, description="Port that /healthz and /metrics listen on.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Log level.")
