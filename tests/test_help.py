"""Does the help of every command say all of what its options say?"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deepict_dask.cli import app


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_every_option_whole_with_all_that_is_said_of_it(path):
    """Markup would take "[default: 0.5]" out of a help text, and a table would cut names."""
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    words = re.sub(r"\s+", "", shown.output)  # lines are broken anywhere
    for parameter in COMMANDS[path].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert re.sub(r"\s+", "", parameter.help) in words
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in shown.output


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_ends_with_an_example_that_the_command_understands(path):
    *_, text = COMMANDS[path].help.split("\n\n")
    example = re.search(r": (deepict-dask .*)$", " ".join(text.split()))
    assert example, text
    assert "Example: deepict-dask " in COMMANDS[path].help
    name, *words = shlex.split(example[1])
    assert (name, *words[: len(path)]) == ("deepict-dask", *path)
    params = COMMANDS[path].make_context(path[-1], words[len(path) :]).params
    assert {p.name for p in COMMANDS[path].params if p.required} <= params.keys()


def program(words, **environment):
    """Run the program from a bash, and return what it prints."""
    line = (
        f"{shlex.quote(sys.executable)} -c 'from deepict_dask.cli import main; main()' {words}; :"
    )
    done = subprocess.run(
        ["bash", "-c", line], env=os.environ | environment, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_completion_of_the_shell_is_shown_and_completes():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--show-completion" in shown
    script = program("--show-completion bash")
    assert "complete_bash" in script
    name = re.search(r"_\w+_COMPLETE(?==complete_bash)", script)[0]
    asked = {"COMP_WORDS": "-c se", "COMP_CWORD": "1", name: "complete_bash"}
    assert program("", **asked).split() == ["segment"]


def test_the_program_can_be_run_as_a_module():
    from deepict_dask import __main__, cli

    assert __main__.main is cli.main
