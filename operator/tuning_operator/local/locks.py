"""Locks on files, which end with the process that holds them."""

import fcntl
from typing import IO

from tuning_operator.local import LocalError


def try_lock(file: IO[str], *, shared: bool = False) -> bool:
    """Lock an open file, alone or with others that share the lock; return False if that can't be now.

    Raises LocalError.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # the file system has no locks
        raise LocalError(
            f"{file.name} can't be locked: {error}. Use a folder on a local disk for the data of all "
            "studies: set the variable TUNING_HOME."
        ) from None
    return True
