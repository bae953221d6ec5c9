"""The record that an earlier TuningStudy of the same name left: continued, refused or replaced."""

from collections.abc import Sequence
from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Problem, StudyDefinition
from tuning_operator.resource.text import count
from tuning_operator.studies.definition.compatibility import metric_problems, value_problems
from tuning_operator.studies.storage.base import Store
from tuning_operator.studies.study.records import definition_in
from tuning_operator.studies.study.refit import REFIT, record_in

CONTINUED = "tuning:continued"
"""A study's system attribute: how many trials it had when its resource began to continue it."""
WAYS_OUT = (
    "set existingRecord to Replace, which deletes the record and starts from scratch, or give the study "
    "another name"
)


class EarlierRecord(NamedTuple):
    """A record as an earlier TuningStudy left it."""

    name: str
    definition: StudyDefinition
    trials: Sequence[FrozenTrial]
    in_progress: bool
    """Whether a trial or the refit is still RUNNING."""

    @property
    def started(self) -> int:
        """How many of the trials were started."""
        return sum(trial.state != TrialState.WAITING for trial in self.trials)

    def is_deleted_for(self, definition: StudyDefinition) -> bool:
        """Return whether the record is deleted, so that another TuningStudy starts from scratch."""
        overdue = self.definition.deletion_policy == "Delete"  # nobody saw that its resource was deleted
        return overdue or not self.started or definition.existing_record == "Replace"

    def is_of_former_namespace(self, definition: StudyDefinition) -> bool:
        """Return whether the namespace was deleted since, and another one has its name."""
        uids = {self.definition.namespace_uid, definition.namespace_uid} - {None}
        return len(uids) == 2

    def problems(self, definition: StudyDefinition) -> list[Problem]:
        """Return why another TuningStudy cannot continue the record."""
        if definition.existing_record == "Refuse":
            message = (
                f"there is a record of {self.name} with {count(self.started, 'trial')}, which an earlier "
                "TuningStudy of this name left: set existingRecord to Continue to continue it, or to Replace "
                "to delete it and start from scratch, or give the study another name"
            )
            return [Problem(field="existingRecord", message=message)]
        return metric_problems(self.name, self.definition, definition, WAYS_OUT) + value_problems(
            self.name, self.trials, definition, WAYS_OUT
        )


def earlier_record(store: Store, name: str, definition: StudyDefinition) -> EarlierRecord | None:
    """Return the record of this name if another TuningStudy wrote it; blocking."""
    try:
        study_id = store.storage.get_study_id_from_name(name)
    except KeyError:
        return None
    attributes = store.storage.get_study_system_attrs(study_id)
    before = definition_in(attributes)
    if before is None or None in (before.uid, definition.uid) or before.uid == definition.uid:
        return None
    trials = store.storage.get_all_trials(study_id, deepcopy=False)
    refit = record_in(attributes.get(REFIT))
    refitting = refit is not None and refit.state == "RUNNING"
    in_progress = refitting or any(trial.state == TrialState.RUNNING for trial in trials)
    return EarlierRecord(name, before, trials, in_progress)
