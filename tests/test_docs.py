"""What the documents show works: their code runs, their settings load, their commands exist."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import deepict_dask
from deepict_dask.cli import app
from deepict_dask.config import load_run_config
from deepict_dask.config.training import load_train_config
from deepict_dask.demo import MODEL
from deepict_dask.models.registry import bundled_models

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deepict_dask"
README = (ROOT / "README.md").read_text()
PAGES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "deepict_dask/DESIGN.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
    )
}
FIRST_RUNS = README + PAGES["docs/running.md"]
IN_PYTHON = PAGES["docs/python.md"]
COMMANDS = typer.main.get_command(app)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell_lines(text):
    joined = "\n".join(blocks(text, "bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


def inline_commands(text):
    return re.findall(r"`(deepict-dask [^`]+)`", text)


def leaves(command, words=()):
    """Every command that does something, by its words."""
    children = getattr(command, "commands", None)
    if children is None:
        return {" ".join(words): command}
    found = {}
    for name, child in children.items():
        found |= leaves(child, (*words, name))
    return found


def parse(line):
    """Parse a command line as the program would, without running it."""
    name, *words = shlex.split(line, comments=True)
    assert name == "deepict-dask"
    command = COMMANDS
    while hasattr(command, "commands"):
        assert words, f"{line}: a command is missing"
        assert words[0] in command.commands, f"{line}: there is no command {words[0]}"
        command = command.commands[words.pop(0)]
    return command.make_context(command.name, words).params


PYTHON = [(page, code) for page, text in PAGES.items() for code in blocks(text, "python")]
YAML = [text for page in PAGES.values() for text in blocks(page, "yaml")]
TRAINING = [text for text in YAML if "\nclasses:" in text]
YAML = [text for text in YAML if text not in TRAINING]
SHELL = [line for text in PAGES.values() for line in shell_lines(text)]
OURS = [line for line in SHELL if line.startswith("deepict-dask")]
OURS += [line for text in PAGES.values() for line in inline_commands(text)]


@pytest.fixture
def demo_folder(tmp_path):
    """A folder with what `make demo` leaves behind and a spectrum, both small."""
    from deepict_dask.equalization import radial_spectrum
    from deepict_dask.io.spectrum import write_spectrum
    from deepict_dask.models.checkpoint import save_model
    from deepict_dask.models.unet3d import UNet3D, UNet3DSettings
    from deepict_dask.synthetic import CellSettings, make_cell, write_cell

    settings = CellSettings((48, 64, 64), n_ribosomes=3, n_fas=1, n_distractors_each=0, seed=1)
    cell = make_cell(settings)
    write_cell(cell, tmp_path / "demo" / "cell")
    spectrum = radial_spectrum(cell.tomogram.copy(), settings.voxel_spacing_angstrom)
    write_spectrum(tmp_path / "target.tsv", spectrum)
    if MODEL not in bundled_models():  # a checkout in which it has not been trained yet
        network = UNet3D(UNet3DSettings(depth=1, initial_features=2, n_classes=2)).eval()
        names = ("ribosome", "fas")
        save_model(
            tmp_path / MODEL, network, class_names=names, voxel_spacing_angstrom=None, card={}
        )
    return tmp_path


def test_the_documents_have_code_settings_and_commands():
    assert len(PYTHON) >= 3
    assert len(YAML) >= 3
    assert len(OURS) >= 10


@pytest.mark.parametrize(
    ("page", "code"), PYTHON, ids=[f"{p}-{i}" for i, (p, _) in enumerate(PYTHON)]
)
def test_every_python_block_runs(page, code, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    if code.startswith(">>>"):
        example = doctest.DocTestParser().get_doctest(code, {}, page, page, 0)
        said: list[str] = []
        doctest.DocTestRunner(verbose=False).run(example, out=said.append)
        assert not said, "".join(said)
    else:
        exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_every_run_file_of_the_documents_loads(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    config = load_run_config(tmp_path / "run.yaml")
    assert config.output.is_relative_to(tmp_path)
    assert config.pick


@pytest.mark.parametrize("text", TRAINING, ids=range(len(TRAINING)))
def test_every_training_file_of_the_documents_loads(text, tmp_path):
    (tmp_path / "train.yaml").write_text(text)
    config = load_train_config(tmp_path / "train.yaml")
    assert config.output.is_relative_to(tmp_path)


def test_the_first_runs_of_the_documents_name_files_that_exist(golden, real_files, tmp_path):
    first = [text for text in blocks(FIRST_RUNS, "yaml") if "../shared/" in text]
    assert len(first) == 3  # the golden one is on both pages
    for text in first:
        (tmp_path / "run.yaml").write_text(text.replace("../shared/", f"{golden.parent}/"))
        config = load_run_config(tmp_path / "run.yaml")
        assert config.tomograms.is_file()
        assert Path(config.segment[0].model).is_file()
    assert sum(f"../{real_files.parent.name}/{real_files.name}/" in text for text in first) == 1


@pytest.mark.parametrize("line", OURS)
def test_every_command_in_the_documents_parses(line):
    assert isinstance(parse(line), dict)


@pytest.mark.parametrize("line", ["deepict-dask pick a.zarr", "deepict-dask info a.mrc --colour"])
def test_the_check_of_commands_notices_a_wrong_one(line):
    with pytest.raises(typer.BadParameter.__base__):
        parse(line)


def test_the_table_of_commands_lists_those_that_exist_and_no_other():
    table = README.split("## Commands")[1].split("All have")[0]
    rows = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    listed = {" ".join(w for w in row.split() if w.islower() and w[0] != "[") for row in rows}
    assert listed == set(leaves(COMMANDS))


def test_every_make_target_in_the_documents_exists():
    makefile = (ROOT / "Makefile").read_text()
    named = {word for text in PAGES.values() for word in re.findall(r"\bmake ([a-z]+)`", text)}
    named |= {line.split()[1] for line in SHELL if line.startswith("make ")}
    assert {"demo", "test"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_dask_commands_of_the_readme_have_the_options_they_use():
    lines = [shlex.split(line) for line in SHELL if line.startswith("dask ")]
    for program in ("scheduler", "worker"):
        used = {w for line in lines if line[1] == program for w in line if w.startswith("--")}
        shown = subprocess.run(
            [sys.executable, "-m", "dask", program, "--help"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
        assert used
        assert [option for option in used if option not in shown] == []


@pytest.mark.parametrize("name", deepict_dask.__all__)
def test_every_public_name_is_in_the_readme_and_explained(name):
    assert re.search(rf"\b{name}\b", README)
    assert re.search(rf"\b{name}\b", IN_PYTHON)
    assert getattr(deepict_dask, name)


def test_the_example_names_the_model_of_the_demo():
    assert re.findall(r'segment\(\w+, "(\w+)"', IN_PYTHON) == [MODEL]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_design_names_every_folder_and_file_of_the_package():
    layout = PAGES["deepict_dask/DESIGN.md"].split("## Layout")[1]
    named = {line.split()[0] for line in blocks(layout, "")[0].splitlines()}
    here = {f"{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py") if not p.parent.is_symlink()}
    here |= {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert named == here


def test_links_between_documents_lead_somewhere():
    for page, text in PAGES.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in link:
                assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_changelog_has_the_version():
    assert f"## [{deepict_dask.__version__}]" in PAGES["CHANGELOG.md"]


def test_hooks_are_local_and_use_the_pinned_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert all(entry.startswith(".venv/bin/ruff ") for entry in entries)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (pinned,) = [need for need in extras["dev"] if need.startswith("ruff")]
    assert re.fullmatch(r"ruff==[\d.]+", pinned)
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_place_for_figures_is_there():
    assert README.count("<!-- measured -->") == README.count("<!-- /measured -->") == 1


def test_the_readme_is_short():
    assert len(README.split()) < 2200


def test_packages_are_installed_from_the_repository_with_its_constraints():
    """This package is on no index."""
    lines = [
        line
        for text in PAGES.values()
        for line in re.findall(r"pip install [^`\n]*", text)
        if "deepict-dask" in line or "-e " in line
    ]
    assert len(lines) >= 3
    assert [
        line for line in lines if not line.startswith("pip install -c constraints.txt -e ")
    ] == []


def test_the_first_training_of_the_documents_is_one_on_the_demos_cell(demo_folder):
    from deepict_dask.training.data import open_training_data

    part = PAGES["docs/training.md"].split("## A first training")[1].split("\n## ")[0]
    (demo_folder / "first.csv").write_text(blocks(part, "text")[0])
    (demo_folder / "first.yaml").write_text(
        blocks(part, "yaml")[0].replace("fraction: 0.25", "fraction: 0.5")  # a smaller cell
    )
    data = open_training_data(load_train_config(demo_folder / "first.yaml"))
    assert data.counts()["particles"].sum() == 3
    assert data.batch(0)[1].any()
