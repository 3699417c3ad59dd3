"""The checks before a release, each in an environment of its own: ``tools/release.py --help``.

- ``colab``: Colab's versions, the wheel installed as the set-up cell installs it, and every chapter
  run far from this folder.
- ``oldest`` and ``newest``: the package's tests with the oldest and with the newest versions that
  pyproject.toml admits.

They take longer than what runs at every change, and need a package index.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
COLAB = ROOT / "tools" / "colab.txt"
COLAB_PYTHON = (3, 13)

# What runs notebooks and tests; the versions of these are not what is being checked.
RUNNERS = ("ipykernel", "nbclient", "nbformat")

# The extras that the package itself can use, in the oldest versions too.
TESTED = ("widgets", "tune")

# The tests of the book and of the project need the book's tools, in the versions that build it.
NOT_OF_THE_PACKAGE = ("test_book.py", "test_project.py", "test_chapters.py", "test_benchmarks.py")

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


def environment(name: str) -> Path:
    """The interpreter of a fresh environment below ``_build``."""
    folder = BUILD / f"env-{name}"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return found


def pip(python: Path, *arguments: str) -> None:
    """Install something; pip's own message says what failed."""
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def versions(python: Path) -> dict[str, str]:
    """What is installed, by canonical name."""
    printed = subprocess.run(
        [str(python), "-c", _VERSIONS], check=True, capture_output=True, text=True
    ).stdout
    return {canonicalize_name(name): version for name, version in json.loads(printed).items()}


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The packages that were there before and are another version, or gone, now."""
    return {
        name: (version, after.get(name, "nothing"))
        for name, version in before.items()
        if after.get(name) != version
    }


def clean(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without those that would lead back into this folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TLHELPERS_", "PYTHON"))
    }
    return kept | {"TLHELPERS_QUIET": "1", "OMP_NUM_THREADS": "1"} | dict(extra or {})


# --- Colab --------------------------------------------------------------------------------


def colab() -> int:
    """Colab's versions, the wheel, and every chapter; the exit status."""
    if sys.version_info[:2] != COLAB_PYTHON:
        wanted = ".".join(map(str, COLAB_PYTHON))
        print(f"Colab has Python {wanted}; this is {platform.python_version()}.")
    python = environment("colab")
    print(f"Installing Colab's versions ({COLAB.relative_to(ROOT)}).", flush=True)
    pip(python, "-r", str(COLAB), *RUNNERS)
    before = versions(python)
    pip(python, f"tlhelpers @ {wheel().as_uri()}")
    after = versions(python)
    if changed := moved(before, after):
        for name, (old, new) in sorted(changed.items()):
            print(f"Installing the package moved {name} from {old} to {new}.", file=sys.stderr)
        return 1
    added = sorted(set(after) - set(before))
    print(f"Installing the package moved nothing, and added {', '.join(added)}.")
    return 1 if run_chapters(python) else 0


def wheel() -> Path:
    """The package as readers get it."""
    folder = BUILD / "release"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def run_chapters(python: Path) -> list[str]:
    """Run every chapter from a copy outside of this folder; the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = subprocess.run(
            [str(python), "-c", "import tlhelpers; print(tlhelpers.__file__)"],
            cwd=folder, env=clean(), check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        assert ROOT / "tlhelpers" not in Path(where).parents, where
        chapters = sorted((ROOT / "chapters").glob("[0-9]*.ipynb"))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = pool.map(lambda path: run_chapter(python, path, folder), chapters)
            for chapter, (seconds, error) in zip(chapters, runs, strict=True):
                print(f"  {chapter.stem}: {error or f'{seconds:.0f} s'}", flush=True)
                if error:
                    failed.append(chapter.stem)
    print(f"{len(chapters) - len(failed)} of {len(chapters)} chapters run.")
    return failed


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


def tests_with(name: str) -> int:
    """The package's tests with the oldest or the newest versions; pytest's exit status."""
    python = environment(name)
    pins = [oldest_pin(r) for r in requirements(*TESTED)] if name == "oldest" else ["--upgrade"]
    pip(python, *pins, *RUNNERS, "-e", f"{ROOT}[{','.join((*TESTED, 'test'))}]")
    found = versions(python)
    wanted = sorted(canonicalize_name(requirement.name) for requirement in requirements())
    print("With " + ", ".join(f"{one} {found[one]}" for one in wanted) + ".", flush=True)
    ignored = [f"--ignore=tests/{file}" for file in NOT_OF_THE_PACKAGE]
    command = [str(python), "-m", "pytest", "-q", "-n", "logical", "--dist", "loadfile"]
    return subprocess.run([*command, *ignored, "tests"], cwd=ROOT, env=clean()).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=("colab", "oldest", "newest"))
    check = parser.parse_args(arguments).check
    return colab() if check == "colab" else tests_with(check)


if __name__ == "__main__":
    sys.exit(main())
