"""The protocol's models: what they do beyond holding values."""

import pytest
from tuning_operator.protocol import Failure


@pytest.mark.parametrize(
    ("message", "remedy", "described"),
    [
        ("KeyError: 'b'", None, "KeyError: 'b'"),
        ("exited with code 2", "See its log.", "exited with code 2. See its log."),
        ("It was killed.", "Raise its memory limit.", "It was killed. Raise its memory limit."),
        ("Is it there?\n", "Create it.", "Is it there? Create it."),
    ],
)
def test_a_failure_describes_what_happened_and_how_to_fix_it(message, remedy, described):
    assert Failure(category="Exception", message=message, remedy=remedy).describe() == described
