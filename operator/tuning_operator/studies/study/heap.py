"""What is there to stay is spared from garbage collection: a full one held replies up 0.1 to 0.2 s."""

import gc


def settle() -> None:
    """Collect everything once, and from then on only what is new. For a start: takes as long."""
    gc.collect()
    gc.freeze()


def spare() -> None:
    """Collect what is there now no more; costs nothing. What is in no cycle goes with its last user."""
    gc.freeze()
