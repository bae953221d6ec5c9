"""Where work runs, as the operator needs it: Jobs of a cluster, or processes on this machine."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import Work
from tuning_operator.protocol import Failure, Problem, StudyKey
from tuning_operator.resource.study import TuningStudy


class RunsUnavailable(Exception):  # noqa: N818
    """Where work runs cannot be reached, or does not accept a request, at this moment."""


class RunRefused(Exception):  # noqa: N818
    """A run cannot be made as the study defines it, until someone changes something."""

    def __init__(self, work: Work, failure: Failure) -> None:
        super().__init__(failure.message)
        self.work, self.failure = work, failure


class Runs(Protocol):
    """Starts, stops and lists the runs of studies. Every coroutine raises RunsUnavailable.

    At most one run of a work exists at any time, whoever starts it and however often.
    """

    async def check(self, study: TuningStudy) -> tuple[Problem, ...]:
        """Return why the study's runs cannot be made, found without making one."""

    async def list_runs(self, study: TuningStudy, unfinished: Collection[Work]) -> Mapping[Work, Run]:
        """Return the runs of the unfinished work, and those of other work that are not over yet.

        A run that does not start, or ended without a result, comes with its diagnosis.
        """

    async def others_waiting(self, study: TuningStudy, *, has_minimum: bool) -> str | None:
        """Return what has been waiting for the study's kind of GPUs for a while, if anything.

        Args:
            has_minimum: whether the study has its minParallelism, so that other elastic studies need not give
                back GPUs for more.
        """

    async def start(self, study: TuningStudy, work: Work) -> None:
        """Give the work a run; nothing happens when it has one.

        Raises:
            RunRefused: the run cannot be made as the study defines it.
        """

    async def stop(self, key: StudyKey, work: Work) -> None:
        """End the work's run; nothing happens when there is none. It may take a while to end."""

    async def finish(self, key: StudyKey, work: Work, *, again: bool) -> None:
        """End what keeps a run alive whose program has exited, and keep its logs.

        Args:
            again: whether the run may try again; otherwise it ends.
        """

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        """Call `changed` whenever a run of a study changes, until cancelled."""

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""


def key_of(study: TuningStudy) -> StudyKey:
    """Return the key that the study has in the record, and in the queue."""
    return StudyKey(study.metadata["namespace"], study.metadata["name"])
