"""YAML as people mean it: times and 2024_05 are no numbers, a key given twice is a mistake."""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["values_of_yaml"]


_NO_NUMBER = re.compile(r".*[:_].*|[-+]?0[0-9]+")
"""Of what YAML 1.1 takes for numbers: to the base 60, with underscores, to the base 8."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but that 12:00, 2024_05 and 001 are texts, not 720, 202405 and 1."""

    def resolve(self, kind: type[Any], value: Any, implicit: Any) -> Any:
        """Return the tag of a node; what people mean as a name or a time is text."""
        tag = super().resolve(kind, value, implicit)
        is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if is_number and _NO_NUMBER.fullmatch(value) else tag

    def construct_mapping(self, node: yaml.MappingNode, *deep: bool, **options: bool) -> Any:
        """Return the keys and values, each key given once."""
        given = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in given:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value} again; leave one out",
                        problem_mark=key.start_mark,
                    )
                given.add(key.value)
        return super().construct_mapping(node, *deep, **options)


def values_of_yaml(text: str) -> Any:
    r"""Return what a YAML text holds; no Python objects.

    Raises
    ------
    yaml.YAMLError
        It is no YAML, or a key is given twice.

    Examples
    --------
    >>> values_of_yaml("walltime: 12:00:00\njobs: 3")
    {'walltime': '12:00:00', 'jobs': 3}
    >>> values_of_yaml("output: 2024_05\ntomograms: 007")
    {'output': '2024_05', 'tomograms': '007'}
    >>> values_of_yaml("jobs: 3\njobs: 4")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    yaml.constructor.ConstructorError: the key jobs again; leave one out
    ...
    """
    return yaml.load(text, _Loader)
