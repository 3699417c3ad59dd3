"""The checks before a release, each in an environment of its own: ``tools/release.py --help``.

- ``colab``: Colab's versions, the wheel installed as the set-up cell installs it, and every chapter
  run far from this folder. With ``--here`` not in an environment of its own but in the Python that
  runs this, as it is: so in Colab's container.
- ``oldest`` and ``newest``: the package's tests with the oldest and with the newest versions that
  pyproject.toml admits.

They take longer than what runs at every change, and need a package index. After a failure, try a
piece of the check again in the environment that is there, for example::

    python tools/release.py colab --again 08 11
    python tools/release.py oldest --again tests/test_probe.py
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import chapter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
COLAB = ROOT / "tools" / "colab.txt"
COLAB_PYTHON = (3, 13)

# What a notebook has imported before it installs the package: these must not move.
IMPORTED = ("torch", "numpy", "pandas")

# What runs notebooks and tests; the versions of these are not what is being checked.
RUNNERS = ("ipykernel", "nbclient", "nbformat")

# The extras that the package itself can use, in the oldest versions too.
TESTED = ("widgets", "tune")

# The tests of the book and of the project need the book's tools, in the versions that build it.
NOT_OF_THE_PACKAGE = (
    "test_benchmarks.py",
    "test_book.py",
    "test_chapters.py",
    "test_costs.py",
    "test_ebook.py",
    "test_front.py",
    "test_gallery.py",
    "test_ledger.py",
    "test_links.py",
    "test_pages.py",
    "test_project.py",
    "test_release.py",
    "test_tables.py",
    "test_try_it.py",
    "test_workflows.py",
)

_VERSIONS = """\
import json
from importlib import metadata
print(json.dumps({d.metadata["Name"]: d.version for d in metadata.distributions()}))"""

_RUN = """\
import sys
import nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
NotebookClient(
    nbformat.read(path, as_version=4), timeout=600, resources={"metadata": {"path": folder}}
).execute()"""


# --- environments -------------------------------------------------------------------------


def interpreter(name: str, *, again: bool) -> Path:
    """The Python of a fresh environment below ``_build``, or of the one that is there.

    Raises:
        SystemExit: if there is none, though there should be.
    """
    folder = BUILD / f"env-{name}"
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not again:
        print(f"Making an environment: {folder.relative_to(ROOT)}.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    elif not found.exists():
        raise SystemExit(f"No environment in {folder.relative_to(ROOT)} yet: leave out --again.")
    return found


def pip(python: Path, *arguments: str) -> None:
    """Install something; pip's own message says what failed.

    Raises:
        SystemExit: if pip fails.
    """
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if status := subprocess.run([*command, *arguments], env=clean()).returncode:
        raise SystemExit(status)


def versions(python: Path) -> dict[str, str]:
    """What is installed, by canonical name."""
    printed = subprocess.run(
        [str(python), "-c", _VERSIONS], env=clean(), check=True, capture_output=True, text=True
    ).stdout
    return {canonicalize_name(name): version for name, version in json.loads(printed).items()}


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The packages that were there before and are another version, or gone, now."""
    return {
        name: (version, after.get(name, "nothing"))
        for name, version in before.items()
        if after.get(name) != version
    }


def listed(names: Iterable[str], found: Mapping[str, str]) -> str:
    """Packages with their versions, in a line."""
    return ", ".join(f"{name} {found[name]}" for name in sorted(names))


def clean(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without those that would lead back into this folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TLHELPERS_", "PYTHON"))
    }
    return kept | {"TLHELPERS_QUIET": "1", "OMP_NUM_THREADS": "1"} | dict(extra or {})


# --- Colab --------------------------------------------------------------------------------


def colab(numbers: Sequence[str], *, again: bool, here: bool) -> int:
    """Colab's versions, the wheel, and the chapters; the exit status.

    Args:
        numbers: the chapters to run, such as ``"08"``; all of them if there are none.
        again: use the environment of the run before, and what is installed in it.
        here: install into the Python that runs this.
    """
    chapters = chosen(numbers)
    python = Path(sys.executable) if here else interpreter("colab", again=again)
    if not again:
        if not here:
            install_colab(python)
        if not install_package(python):
            return 1
    return 1 if run_chapters(python, chapters) else 0


def chosen(numbers: Sequence[str]) -> list[Path]:
    """The chapters of these numbers, or all.

    Raises:
        SystemExit: if there is no chapter of a number.
    """
    found = {path.stem[:2]: path for path in sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))}
    if unknown := set(numbers) - set(found):
        raise SystemExit(f"There is no chapter {', '.join(sorted(unknown))}: {', '.join(found)}.")
    return [path for number, path in found.items() if not numbers or number in numbers]


def install_colab(python: Path) -> None:
    """Install what Colab has."""
    if sys.version_info[:2] != COLAB_PYTHON:
        wanted = ".".join(map(str, COLAB_PYTHON))
        print(f"Colab has Python {wanted}, and this is {platform.python_version()}: make PYTHON=…")
    listing = COLAB.relative_to(ROOT)
    print(f"Installing Colab's versions, as {listing} has them: some minutes.", flush=True)
    pip(python, "-r", str(COLAB), *RUNNERS)


def install_package(python: Path) -> bool:
    """Install the wheel as a chapter's first cell does; whether all that was there stayed."""
    print("Building the wheel, and installing it.", flush=True)
    before = versions(python)
    pip(python, f"{chapter.REQUIREMENT} @ {wheel().as_uri()}")
    after = versions(python)
    if changed := moved(before, after):
        for name, (old, new) in sorted(changed.items()):
            print(f"Installing the package moved {name} from {old} to {new}.", file=sys.stderr)
        print(
            "In Colab these are loaded by then. Lower the bounds in pyproject.toml.",
            file=sys.stderr,
        )
        return False
    print(f"It moved nothing: {listed(IMPORTED, after)} and {len(before) - len(IMPORTED)} more.")
    print(f"It added {listed(set(after) - set(before), after) or 'nothing'}.", flush=True)
    return True


def wheel() -> Path:
    """The package as readers get it."""
    folder = BUILD / "release"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def run_chapters(python: Path, chapters: Sequence[Path]) -> list[str]:
    """Run chapters from a copy outside of this folder; the names of those that failed."""
    errors = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = subprocess.run(
            [str(python), "-c", "import tlhelpers; print(tlhelpers.__file__)"],
            cwd=folder, env=clean(), check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        if ROOT / "tlhelpers" in Path(where).parents:
            raise SystemExit(f"The chapters would import the package from {where}, not the wheel.")
        cores = min(os.cpu_count() or 1, len(chapters))
        many = f"{len(chapters)} chapters" if len(chapters) > 1 else chapters[0].stem
        print(f"Running {many} in an empty folder, {cores} at a time.", flush=True)
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            runs = {pool.submit(run_chapter, python, path, folder): path.stem for path in chapters}
            for done in concurrent.futures.as_completed(runs):
                seconds, error = done.result()
                print(f"  {runs[done]}: {'FAILED' if error else f'{seconds:.0f} s'}", flush=True)
                if error:
                    errors[runs[done]] = error
    for stem, error in sorted(errors.items()):
        print(f"\n{stem}\n{error}", file=sys.stderr)
    print(f"{len(chapters) - len(errors)} of {len(chapters)} chapters ran without an error.")
    return sorted(errors)


def run_chapter(python: Path, chapter: Path, folder: Path) -> tuple[float, str | None]:
    """Seconds, and the end of the error where a cell failed."""
    copy = folder / chapter.name
    shutil.copy(chapter, copy)
    started = time.perf_counter()
    done = subprocess.run(
        [str(python), "-c", _RUN, str(copy), str(folder)],
        cwd=folder, env=clean({"TLHELPERS_CACHE": str(folder / "cache")}),
        capture_output=True, text=True,
    )  # fmt: skip
    error = "\n".join(done.stderr.strip().splitlines()[-15:]) if done.returncode else None
    return time.perf_counter() - started, error


# --- oldest and newest --------------------------------------------------------------------


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the package's own, and those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def oldest_pin(requirement: Requirement) -> str:
    """The last patch of the lowest version admitted: a bound names a minor release.

    The very first release of a minor often does not fit the others of its time.

    >>> oldest_pin(Requirement("numpy>=2.0"))
    'numpy==2.0.*'
    >>> oldest_pin(Requirement("jupyter-book>=1.0.4,<2"))
    'jupyter-book==1.0.*'

    Raises:
        ValueError: if the requirement has no lower bound.
    """
    bounds = [part.version for part in requirement.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} should have one lower bound, so that it can be tested.")
    minor = ".".join([*bounds[0].split("."), "0"][:2])
    return f"{requirement.name}=={minor}.*"


def tests_with(name: str, selection: Sequence[str], *, again: bool) -> int:
    """The package's tests with the oldest or the newest versions; pytest's exit status.

    Args:
        name: ``"oldest"`` or ``"newest"``.
        selection: files of tests, or all of the package's if there are none.
        again: use the environment of the run before, and what is installed in it.
    """
    python = interpreter(name, again=again)
    if not again:
        print(
            f"Installing the {name} versions that pyproject.toml admits: some minutes.", flush=True
        )
        pins = [oldest_pin(r) for r in requirements(*TESTED)] if name == "oldest" else ["--upgrade"]
        pip(python, *pins, *RUNNERS, "-e", f"{ROOT}[{','.join((*TESTED, 'test'))}]")
    wanted = [canonicalize_name(requirement.name) for requirement in requirements()]
    print(f"Testing with {listed(wanted, versions(python))}.", flush=True)
    ignored = [f"--ignore=tests/{file}" for file in NOT_OF_THE_PACKAGE]
    command = [str(python), "-m", "pytest", "-q", "-n", "logical", "--dist", "loadfile"]
    chosen_tests = list(selection) or [*ignored, "tests"]
    return subprocess.run([*command, *chosen_tests], cwd=ROOT, env=clean()).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=("colab", "oldest", "newest"))
    parser.add_argument("part", nargs="*", help="chapters (08), or files of tests; default: all")
    parser.add_argument("--again", action="store_true", help="use the environment that is there")
    parser.add_argument("--here", action="store_true", help="colab: install into this very Python")
    given = parser.parse_intermixed_args(arguments)  # the parts may stand after an option
    if given.check == "colab":
        return colab(given.part, again=given.again, here=given.here)
    if given.here:
        parser.error("--here is for colab only.")
    return tests_with(given.check, given.part, again=given.again)


if __name__ == "__main__":
    sys.exit(main())
