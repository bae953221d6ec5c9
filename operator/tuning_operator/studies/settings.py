"""The study server's settings, from environment variables with the prefix TUNING_."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class StudySettings(BaseSettings):
    """The study server's settings; each is an environment variable, for example TUNING_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="TUNING_", frozen=True)

    database_url: SecretStr = Field(
        description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE; `memory:` keeps studies in memory only."
    )
    shard: int = Field(
        0,
        ge=0,
        description="The ordinal of this study server. It serves the studies that were first declared to it; "
        "server 0 also serves those that other programs created.",
    )
    host: str = Field("", description="The address to listen on. Empty: all, of IPv4 and of IPv6.")
    port: int = Field(8443, ge=0, le=65_535, description="The port to listen on.")
    tls_cert_file: Path | None = Field(
        None, description="PEM certificate chain. If unset, the server uses plain HTTP."
    )
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate.")
    operator_service_account: str = Field(
        "local:operator",
        pattern=r"^[^:]+:[^:]+$",
        description="The operator's service account, NAMESPACE:NAME.",
    )
    token_secret: SecretStr | None = Field(
        None, description="Local mode: the secret that signs tokens (HS256) in place of a cluster."
    )
    kubernetes_url: str = Field(
        "https://kubernetes.default.svc", description="The API server, which publishes the keys of tokens."
    )
    kubernetes_issuer: str | None = Field(
        None, description="The issuer that tokens must have. If unset, the one that the API server publishes."
    )
    kubernetes_token_file: Path = Field(
        SERVICE_ACCOUNT / "token", description="The token used to fetch the keys."
    )
    kubernetes_ca_file: Path = Field(
        SERVICE_ACCOUNT / "ca.crt", description="PEM certificate of the API server's CA."
    )
    pod: str | None = Field(
        None,
        description="NAMESPACE/NAME of this pod. A former study server in a pod of this name, such as one on "
        "a lost node, can't keep the database.",
    )
    record_retention_days: float | None = Field(
        None,
        gt=0,
        description="Days that the record of a deleted TuningStudy is kept. If unset, forever.",
    )
    shutdown_seconds: int = Field(
        20, ge=1, description="Seconds that requests in flight may still take at shutdown."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Log level.")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("set both TUNING_TLS_CERT_FILE and TUNING_TLS_KEY_FILE, or neither")
        return self
