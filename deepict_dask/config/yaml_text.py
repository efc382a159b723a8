"""YAML as people mean it: a time is no number, and a key that is given twice is a mistake."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["values_of_yaml"]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without numbers to the base 60, which make 12:00 the number 720."""

    def resolve(self, kind: type[Any], value: Any, implicit: Any) -> Any:
        """Return the tag of a node; what has a colon is text."""
        has_colon = kind is yaml.ScalarNode and ":" in (value or "")
        tag = super().resolve(kind, value, implicit)
        is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if has_colon and is_number else tag

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
    >>> values_of_yaml("jobs: 3\njobs: 4")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    yaml.constructor.ConstructorError: the key jobs again; leave one out
    ...
    """
    return yaml.load(text, _Loader)
