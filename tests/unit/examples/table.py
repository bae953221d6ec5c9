"""The typical studies of the field: what each one's manifest says at full size, as agreed."""

from typing import Any

ROWS: dict[str, dict[str, Any]] = {
    "mnist": {
        "objectives": [{"metric": "accuracy", "direction": "maximize"}],
        "searchSpace": [
            {"name": "learning_rate", "type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            {"name": "hidden_size", "type": "int", "low": 64, "high": 256, "step": 32},
        ],
        "maxTrials": 10,
    },
}
