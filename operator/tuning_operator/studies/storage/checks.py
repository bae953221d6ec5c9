"""What Optuna's tables can hold: said before a value is queued, for then it is too late for a good error."""

from optuna.trial import FrozenTrial

from tuning_operator.studies.storage.schema import LONGEST_KEY

_LARGEST = 2**31 - 1


def key(text: str) -> str:
    """Return a name or an attribute's key. Raises ValueError for one that no row can hold."""
    if len(text) > LONGEST_KEY:
        raise ValueError(f"{text[:40]!r}... has {len(text)} characters; Optuna's tables take {LONGEST_KEY}.")
    if "\0" in text:
        raise ValueError(f"{text!r} has a NUL character, which PostgreSQL cannot store.")
    text.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
    return text


def integer(number: int) -> int:
    """Return a step. Raises ValueError for one that no row can hold."""
    if not -_LARGEST - 1 <= number <= _LARGEST:
        raise ValueError(f"The step {number} is too large: Optuna's tables take up to {_LARGEST}.")
    return int(number)


def number(value: float) -> float:
    """Return a number as it is read back: PostgreSQL takes Optuna's -0.0 for 0.0."""
    return float(value) + 0.0


def template(trial: FrozenTrial) -> None:
    """Check all names and steps of a trial that is to be created. Raises ValueError."""
    for name in (*trial.params, *trial.user_attrs, *trial.system_attrs):
        key(name)
    for step in trial.intermediate_values:
        integer(step)
