"""Data as YAML that kubectl reads as it was meant."""

import re
from typing import Any

import yaml

_AMBIGUOUS = re.compile(r"[yYnN]|[-+]?\.?[0-9][0-9._]*([eE][-+]?[0-9]+)?|[-+]?0[bBoOxX][0-9a-fA-F_]+")
"""Strings that PyYAML leaves unquoted, but that kubectl reads as booleans or numbers."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that kubectl would read as something else."""

    def represent_string(self, text: str) -> yaml.ScalarNode:
        quote = "'" if _AMBIGUOUS.fullmatch(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, quote)


_Dumper.add_representer(str, _Dumper.represent_string)


def yaml_of(data: Any, **options: Any) -> str:
    """Return data as YAML, with the options of yaml.dump."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))
