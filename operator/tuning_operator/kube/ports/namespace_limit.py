"""A limit on the trials that run at the same time in a namespace, over all of its studies."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.parallelism import allowed_trials, wanted_trials
from tuning_operator.kube.plan.usage import gpu_seconds
from tuning_operator.kube.plan.verdict import judge
from tuning_operator.kube.ports.kube_api import KubeApi
from tuning_operator.kube.ports.runs import key_of
from tuning_operator.protocol import StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy


class Claim(NamedTuple):
    """What a study takes of its namespace's limit."""

    running: int
    """Trials that run, or may have been asked for."""
    wanted: int
    """Trials that would run without the limit."""


class NamespaceLimit:
    """Shares a number of trials among the studies of each namespace.

    What studies run is remembered from their own passes, since the leader is the only operator. At first, it
    is read from their status. That may lack trials which an operator asked for just before it was killed, so
    the limit may be exceeded by these.
    """

    def __init__(self, kube: KubeApi, trials: int, installation: str | None = None) -> None:
        """Start with nothing.

        Args:
            kube: the API server.
            trials: how many may run in a namespace.
            installation: whose studies share them; None: there is no other.
        """
        self._kube, self._trials, self._installation = kube, trials, installation
        self._claims: dict[str, dict[str, Claim]] = {}

    async def allowed(self, study: TuningStudy, seen: Observation, now: datetime) -> int | None:
        """Return how many trials of the study may run now; None: as many as it wants.

        The status may still say that the study is over, though it resumes now.
        """
        namespace, name = key_of(study)
        if namespace not in self._claims:
            studies = await self._kube.select(names.KIND, namespace)
            ours = [body for body in studies if self._is_ours(body)]
            self._claims.setdefault(namespace, {body["metadata"]["name"]: _claim_of(body) for body in ours})
        # Nothing is awaited from here on: passes over other studies see either no claim or the whole one.
        claims, summary = self._claims[namespace], seen.summary or StudySummary()
        running = summary.counts.running
        over = judge(study, summary, gpu_seconds(study, seen, now), now) is not None
        wanted = running if over else wanted_trials(study, seen, allowed_trials(study, seen))
        claims[name] = Claim(running, wanted)
        allowed = share(self._trials, name, claims)
        claims[name] = Claim(max(running, min(allowed, wanted)), wanted)
        return allowed if allowed < wanted else None

    def _is_ours(self, body: Mapping[str, Any]) -> bool:
        """Return whether a study is not served by another installation, whose passes are not seen here."""
        owner = body["spec"].get("installation") or body.get("status", {}).get("installation")
        return owner is None or self._installation in (None, owner)

    def forget(self, key: StudyKey) -> None:
        """Drop the claim of a study that is gone."""
        claims = self._claims.get(key.namespace, {})
        claims.pop(key.name, None)
        if not claims:
            self._claims.pop(key.namespace, None)


def share(limit: int, name: str, claims: Mapping[str, Claim]) -> int:
    """Return how many trials a study may run: a fair share, as far as others do not run more than theirs.

    Studies that want less than an equal share get what they want; the others share the rest equally.
    """
    left, mine = limit, 0
    order = sorted(claims, key=lambda each: (claims[each].wanted, each))
    for position, each in enumerate(order):
        granted = min(claims[each].wanted, left // (len(order) - position))
        left -= granted
        if each == name:
            mine = granted
    taken = sum(claim.running for each, claim in claims.items() if each != name)
    return max(0, min(mine, limit - taken))


def _claim_of(body: Mapping[str, Any]) -> Claim:
    """Return what a study runs by its status: it takes no more until its own pass."""
    trials = body.get("status", {}).get("trials", {})
    running = trials.get("running", 0) + trials.get("pending", 0)
    return Claim(running, running)
