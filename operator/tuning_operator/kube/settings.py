"""What the operator process is told by its environment (variables with the prefix TUNING_)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class OperatorSettings(BaseSettings):
    """The operator's settings; each is an environment variable, for example TUNING_STUDY_SERVER_URL."""

    model_config = SettingsConfigDict(env_prefix="TUNING_", frozen=True)

    study_server_url: str = Field(
        description="Where the study server answers, for the operator and for trial pods alike."
    )
    study_server_ca_file: Path | None = Field(
        None, description="PEM of the authority behind the server's certificate. Unset: the system's."
    )
    token_file: Path = Field(
        description="The operator's token for the study server; read again for each request, as it rotates."
    )
    namespaces: list[str] = Field(
        default_factory=list, description='JSON list of namespaces to serve, `["ml"]`. Empty: all of them.'
    )
    workers: int = Field(4, ge=1, description="How many studies are reconciled at the same time.")
    resync_seconds: float = Field(
        180, gt=0, description="Each study is looked at this often, whatever the watches say."
    )
    stuck_seconds: float = Field(
        300,
        gt=0,
        description="/healthz fails when work has waited this long without one pass coming to its end.",
    )
    probe_host: str = Field("0.0.0.0", description="Where /healthz and /metrics listen.")  # noqa: S104
    probe_port: int = Field(8081, description="The port of /healthz and /metrics.")
