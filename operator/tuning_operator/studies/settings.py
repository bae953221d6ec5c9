"""What the study server is told by its environment (variables with the prefix TUNING_)."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class StudySettings(BaseSettings):
    """The study server's settings; each is an environment variable, for example TUNING_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="TUNING_", frozen=True)

    database_url: SecretStr = Field(
        description="postgresql://USER:PASSWORD@HOST:PORT/DATABASE; `memory:` keeps nothing (for trying out)."
    )
    host: str = Field("0.0.0.0", description="Where the server listens.")  # noqa: S104
    port: int = Field(8443, ge=0, le=65_535, description="The port of the server.")
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain. Unset: plain HTTP.")
    tls_key_file: Path | None = Field(None, description="PEM key of the certificate.")
    operator_service_account: str = Field(
        "local:operator",
        pattern=r"^[^:]+:[^:]+$",
        description="The operator's service account, NAMESPACE:NAME.",
    )
    token_secret: SecretStr | None = Field(
        None, description="Local mode: tokens are signed with this secret (HS256) instead of by a cluster."
    )
    kubernetes_url: str = Field(
        "https://kubernetes.default.svc", description="The API server that publishes the tokens' keys."
    )
    kubernetes_issuer: str | None = Field(
        None, description="The issuer that tokens must name. Unset: what the API server says of itself."
    )
    kubernetes_token_file: Path = Field(
        SERVICE_ACCOUNT / "token", description="The token with which the keys are fetched."
    )
    kubernetes_ca_file: Path = Field(
        SERVICE_ACCOUNT / "ca.crt", description="PEM of the authority behind the API server's certificate."
    )
    shutdown_seconds: int = Field(
        20, ge=1, description="How long requests in flight may take when the server is told to end."
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TUNING_TLS_CERT_FILE and TUNING_TLS_KEY_FILE go together: set both or neither")
        return self
