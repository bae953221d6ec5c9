"""How a pass ended, and which of its errors a user should know about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuning_operator.kube.plan.work import Work, Worker
from tuning_operator.kube.ports.act import Expected
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.runs import RunRefused
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Failure
from tuning_operator.resource.text import count


@dataclass(frozen=True)
class Result:
    """How a pass ended.

    Attributes:
        outcome: `gone` if the study no longer exists, `acted` if the pass carried out actions, `waiting` if
            there was nothing to do, `no_progress` if it carried out the same actions as the pass before.
        after: seconds until the study needs another pass; None if it needs one only when something happens.
        over: whether the study is over and nothing of it is running any more.
    """

    outcome: Literal["gone", "waiting", "acted", "no_progress"]
    after: float | None = None
    over: bool = False


class ActionsFailed(Exception):  # noqa: N818
    """Some actions of a pass failed; all were tried."""

    def __init__(self, errors: Sequence[Expected]) -> None:
        texts = list(dict.fromkeys(map(str, errors)))
        more = f" (and {count(len(texts) - 1, 'other error')})" if len(texts) > 1 else ""
        super().__init__(f"{texts[0]}{more}")


def most_urgent(errors: Sequence[Expected]) -> tuple[Failure, Work | None] | None:
    """Return the failure to report, and the work that cannot start; None if all errors pass by themselves."""
    for error in sorted(errors, key=_urgency):
        if failure := failure_of(error):
            return failure, error.work if isinstance(error, RunRefused) else None
    return None


def _urgency(error: Expected) -> tuple[bool, int]:
    """What a user has to fix comes first, and of several trials the first one."""
    if not isinstance(error, RunRefused):
        return True, 0
    return False, error.work.slot if isinstance(error.work, Worker) else error.work.trial


def failure_of(error: Expected) -> Failure | None:
    """Return what the user should know about an error; None for one that passes by itself."""
    match error:
        case RunRefused():
            return error.failure
        case StudyServerUnavailable():
            return Failure(
                category="StudyServerUnavailable",
                message=f"The study server is unavailable: {error}.",
                remedy="Running trials continue; nothing is lost. If this lasts, check the pods of the study "
                "server and of its database.",
            )
        case KubeError(is_refusal=True):
            return Failure(
                category="KubernetesRefused",
                message=f"Kubernetes rejected a request by the operator: {error}",
                remedy="Check the operator's permissions (the chart's RBAC), and the cluster's admission "
                "policies and webhooks.",
            )
    return None
