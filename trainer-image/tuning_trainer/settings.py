"""The pod's settings: environment variables that describe its trial."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(Exception):
    """A variable is missing or invalid; the message names it."""


class Settings(NamedTuple):
    """The trial's address, its credentials, and where its code is."""

    trial_url: str
    study: str
    token_file: str
    ca_file: str | None
    source: str | None
    termination_log: str
    final: bool
    """Whether this is the refit, which trains with the best parameters (TUNING_ROLE is `final`)."""
    worker: bool
    """Whether the pod takes one trial after another (TUNING_ROLE is `worker`)."""
    follower: bool
    """Whether this is a worker of distributed training other than the first: it reports nothing."""
    config: dict[str, Any]
    """What else the runtime needs from the manifest (TUNING_CONFIG, a JSON object); may be empty. Keys:
    `metrics` {pattern, file}, `pruneGraceSeconds`, `timeoutSeconds`, `sampler` and `pruner` {name, args},
    `study` (trial.study), `log` (where the output is, unless it is the log of the trial's own pod), in pods
    `storage` {field: of the pod template, outlastPod: by folder, whether its files are kept when the pod is
    deleted}. Of a worker: `trialsPerPod`, `memoryLimit` (of all its trials together, in bytes), and in the
    local mode `trialFolder` (the folder of each trial, with {trial} in place of the number)."""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a variable is missing or invalid.
    """
    return Settings(
        trial_url=_required(environ, "TUNING_TRIAL_URL").rstrip("/"),
        study=environ.get("TUNING_STUDY", ""),
        token_file=_required(environ, "TUNING_TOKEN_FILE"),
        ca_file=environ.get("TUNING_CA_FILE") or None,
        source=environ.get("TUNING_SOURCE") or None,
        termination_log=environ.get("TUNING_TERMINATION_LOG") or "/dev/termination-log",
        final=environ.get("TUNING_ROLE") == "final",
        worker=environ.get("TUNING_ROLE") == "worker",
        follower=_is_follower(environ),
        config=_config(environ.get("TUNING_CONFIG") or "{}"),
    )


def _is_follower(environ: Mapping[str, str]) -> bool:
    """Launchers set LOCAL_RANK and WORLD_SIZE together, and most of them RANK.

    RANK without the others may be anything, for example the rank of LoRA matrices.
    """
    launched = environ.get("LOCAL_RANK") and environ.get("WORLD_SIZE")
    return bool(launched) and any(environ.get(name, "0") != "0" for name in ("LOCAL_RANK", "RANK"))


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise SettingsError(
            f"{name} is not set. The trainer runtime is started by the operator or by `tuning run`."
        )
    return value


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"TUNING_CONFIG is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise SettingsError("TUNING_CONFIG must be a JSON object")
    return config
