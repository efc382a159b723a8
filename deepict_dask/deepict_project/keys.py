"""Which keys DeePiCt's YAML files have, and how a file is compared with them.

1. Every leaf of the file is looked up by its dotted name. An old name of a key is named with the
   new one; a name that nobody knows is an error where it looks like a misspelt key that is missing,
   and a warning else, since DeePiCt ignores what it does not know.
2. Values of keys that matter are checked; what is missing takes DeePiCt's own default, or is an
   error where there is none.
3. Keys that change nothing here are listed once, in one line.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .findings import Findings

__all__ = ["REQUIRED", "Key", "Schema", "read_values"]

REQUIRED: Any = object()
"""Default of a key that must be given."""


@dataclass(frozen=True)
class Key:
    """One key of a config."""

    parse: Callable[[Any], Any]
    """Returns the value, or raises ValueError with what was expected."""
    default: Any = REQUIRED
    """As it would stand in the file."""
    use: Literal["used", "training", "unused"] = "used"
    """Whether the value matters here, only for training, or never."""


@dataclass(frozen=True)
class Schema:
    """All keys of one kind of config by their dotted names."""

    keys: Mapping[str, Key]
    renamed: Mapping[str, str]
    """Old names (the last part) and what they are called now."""


def read_values(values: Mapping[str, Any], schema: Schema, findings: Findings) -> dict[str, Any]:
    """Return the value of every key that matters, by its dotted name.

    Parameters
    ----------
    values
        The parsed YAML.
    schema
        What may be there.
    findings
        Receives what is odd. A value that is missing or wrong is None in the result.

    Examples
    --------
    >>> from deepict_dask.deepict_project.findings import Findings
    >>> schema = Schema({"prediction.active": Key(flag, False)}, renamed={})
    >>> findings = Findings("config.yaml")
    >>> read_values({"prediction": {"activ": True}}, schema, findings)
    {'prediction.active': False}
    >>> findings.errors
    ['prediction.activ: unknown key; did you mean prediction.active?']
    """
    given = dict(_leaves(values, schema, findings))
    blamed = {
        _judge_unknown(name, given, schema, findings) for name in given if name not in schema.keys
    }
    read: dict[str, Any] = {}
    assumed: list[str] = []
    for name, key in schema.keys.items():
        if key.use == "used":
            read[name] = None
            if name in given and not (given[name] is None and key.default is REQUIRED):
                read[name] = _parsed(name, key, given[name], findings)
            elif key.default is not REQUIRED:
                read[name] = key.parse(key.default)
                if key.default is not None and not name.endswith(".active"):
                    assumed.append(f"{name} {key.default}")
            elif not any(name == key or name.startswith(f"{key}.") for key in blamed):
                findings.error(f"{name}: is required, found nothing")
    if assumed:
        findings.note(f"not given, so DeePiCt's default is taken: {', '.join(assumed)}")
    _list_unused(given, schema, findings)
    return read


def _leaves(
    values: Mapping[str, Any], schema: Schema, findings: Findings, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; a section is gone into where the schema does."""
    for part, value in values.items():
        name = f"{prefix}{part}"
        is_section = any(known.startswith(f"{name}.") for known in schema.keys)
        if is_section and isinstance(value, dict):
            yield from _leaves(value, schema, findings, f"{name}.")
        elif is_section and value is not None:
            findings.error(f"{name}: expected keys below it, found {value!r}")
        elif not is_section:
            yield name, value


def _parsed(name: str, key: Key, value: Any, findings: Findings) -> Any:
    """Return one value, checked; None and an error where it is wrong."""
    try:
        return key.parse(value)
    except ValueError as error:
        findings.error(f"{name}: expected {error}, found {value!r}")
        return None


def _judge_unknown(
    name: str, given: Mapping[str, Any], schema: Schema, findings: Findings
) -> str | None:
    """Name an old, a misspelt or an unknown key; return the key it stands for, if it is needed."""
    last = name.rsplit(".", 1)[-1]
    if last in schema.renamed:
        return _judge_old(name, schema.renamed[last], given, schema, findings)
    section = _nearest(name, _missing_sections(given, schema))
    if section is not None:
        findings.error(f"{name}: unknown section; did you mean {section}?")
        return section
    near = _nearest(name, [known for known in schema.keys if known not in given])
    if near is not None and schema.keys[near].use == "used":
        findings.error(f"{name}: unknown key; did you mean {near}?")
        return near
    near = near or _nearest(name, list(schema.keys))
    hint = f" (did you mean {near}?)" if near else ""
    findings.warn(f"{name}: unknown key, ignored as DeePiCt does{hint}")
    return None


def _missing_sections(given: Mapping[str, Any], schema: Schema) -> list[str]:
    """Return the sections of which no key is given."""
    there = {section for name in given for section in _sections_of(name)}
    known = {section for name in schema.keys for section in _sections_of(name)}
    return sorted(known - there)


def _sections_of(name: str) -> list[str]:
    """Return the sections that a key is in.

    Examples
    --------
    >>> _sections_of("evaluation.particle_picking.active")
    ['evaluation', 'evaluation.particle_picking']
    """
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _nearest(name: str, known: list[str]) -> str | None:
    """Return the key that a name is meant for: misspelt in its section, or in a wrong section.

    Examples
    --------
    >>> _nearest("a.treshold", ["a.threshold", "b.box_size"]), _nearest("box_size", ["b.box_size"])
    ('a.threshold', 'b.box_size')
    """
    section, _, last = name.rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    for found in difflib.get_close_matches(last, beside, n=1, cutoff=0.7):
        return beside[found]
    return next((key for key in known if key.rpartition(".")[2] == last), None)


def _judge_old(
    name: str, new: str, given: Mapping[str, Any], schema: Schema, findings: Findings
) -> str | None:
    """Name a key by what it is called now."""
    if new in given:
        findings.warn(f"{name}: an obsolete key; ignored, as its new name {new} is there")
        return None
    if schema.keys[new].use != "used":
        findings.warn(f"{name}: an obsolete key, called {new} now; it has no effect here")
        return None
    findings.error(f"{name}: an obsolete key, called {new} now; rename it")
    return new


def _list_unused(given: Mapping[str, Any], schema: Schema, findings: Findings) -> None:
    """List once what is there and has no effect; settings of a training by their number."""
    idle = {name: schema.keys[name].use for name in given if name in schema.keys}
    shown = sorted(name for name, use in idle.items() if use == "unused")
    n_training = sum(use == "training" for use in idle.values())
    if n_training:
        shown.append(f"settings of a training ({n_training} keys)")
    if shown:
        findings.note(f"without effect here: {', '.join(shown)}")


def flag(value: Any) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise ValueError("True or False")  # noqa: TRY004 - a wrong value of a config
    return value


def text(value: Any) -> str:
    """Return a name or path."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text")
    return value


def number(value: Any) -> int | float:
    """Return a number; YAML reads 1e-4 as text, so text of a number is one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    try:
        return float(value) if isinstance(value, str) else _not_a_number()
    except ValueError:
        return _not_a_number()


def _not_a_number() -> float:
    raise ValueError("a number")


def count(value: Any) -> int:
    """Return a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number of at least 0")
    return value


def positive(value: Any) -> int:
    """Return a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number of at least 1")
    return value


def names(value: Any) -> tuple[str, ...]:
    """Return a list of names; YAML reads an unquoted 001 as a number, so numbers are names."""
    if not isinstance(value, list) or not all(
        isinstance(item, str | int) and not isinstance(item, bool) for item in value
    ):
        raise ValueError("a list of names")
    return tuple(dict.fromkeys(str(item) for item in value))


def pair(value: Any) -> tuple[int, int]:
    """Return two whole numbers of at least 1."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("two whole numbers [rows, columns]")
    return positive(value[0]), positive(value[1])


def one_of(*choices: Any) -> Callable[[Any], Any]:
    """Return a parser that takes one of some values."""

    def parse(value: Any) -> Any:
        if isinstance(value, bool) or value not in choices:
            raise ValueError(f"one of {', '.join(map(str, choices))}")
        return value

    return parse


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a parser that takes null as well."""
    return lambda value: None if value is None else parse(value)


def anything(value: Any) -> Any:
    """Return what was given: for keys that change nothing."""
    return value
