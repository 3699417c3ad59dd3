"""Build the book, build one page of it, or show it: ``python tools/book.py build``.

The work is done by ``jupyter-book build``. What is added here makes its result honest:

- The execution cache knows a page by its code cells alone. It would show old results after a
  change in ``tlhelpers`` or in an installed version, so it is dropped when either changed.
- jupyter-book forgets an error: a page that failed is not read again by the next build, which
  then succeeds. So after a build that failed every page is read anew.
- Pages are always the offline ones: what a reader has in ``TLHELPERS_DATA`` or in the cache
  folder never gets into the published book (the photographs' licence forbids it).
- jupyter-book runs one page after another. Here as many run side by side as there are cores, on
  one core each: small networks gain little from a second one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import hashlib
import http.server
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
HTML = BUILD / "html"
DOCTREES = BUILD / ".doctrees"
EXECUTED = BUILD / ".jupyter_cache"  # notebooks with their outputs
PAGE = BUILD / "page"
DATA_CACHE = BUILD / "cache"  # stands in for the reader's own cache folder
STATE = BUILD / "state.json"
LEDGER = BUILD / "ledger.md"
FRONT = BUILD / "front.md"
MAP = BUILD / "map.md"
STATIC = BUILD / "static"  # scripts that are made; Sphinx copies them with those of assets/
COSTS = BUILD / "costs.md"
SHARE = BUILD / "share.png"  # the picture beside a link to the book

# What decides over the form of every page, but not over what its code prints.
LAYOUT = (
    "_config.yml", "_toc.yml", "references.bib", "assets", "tools/book.py", "tools/pages.py"
)  # fmt: skip
# Beside a single page, the pages that its references lead to.
COMPANIONS = ("glossary", "references")

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
EXECUTION = re.compile(r"(chapters/\S+?): (Executing notebook|Executed notebook in [\d.]+ sec\w+)")
# ipykernel says this once a kernel; the kernel listens on this machine only.
KERNEL_NOTICE = re.compile(r"Kernel is running over TCP|consider using CurveZMQ|IPC transport")


@dataclass(frozen=True)
class Execution:
    """What happened when a page's code ran; ``seconds`` may be unknown."""

    page: str
    seconds: float | None
    traceback: str | None  # of the cell that failed
    finished: float  # seconds since the epoch

    def failure(self) -> str:
        """The failed cell and its error, without what the machinery around them adds."""
        lines = (self.traceback or "").strip().splitlines()
        starts = [i for i, line in enumerate(lines) if "while executing the following cell" in line]
        return "\n".join(lines[starts[0] + 1 :] if starts else lines[-20:])


def build() -> int:
    """Execute what has to be executed, write ``_build/html``, report; the exit status."""
    started = time.time()
    key = prepare()
    state = read_state()
    layout = fingerprint(ROOT / name for name in LAYOUT)
    if not state.get("complete") or state.get("layout") != layout:
        # Also removes the page of a chapter that is no longer in the table of contents.
        remove(HTML, DOCTREES)
    write_state(runtime=key, layout=layout, complete=False)

    print("Building the book; code runs where no result for it is kept.")
    ahead = execute_ahead(pages_with_code())
    write_included(executed(pages_with_code()))
    write_static()
    status = jupyter_book(["-W", "-n", "--keep-going"])
    executions, plain = executions_of(DOCTREES)
    if failed := report_failures(executions, status):
        return failed
    if runtime_key() != key:
        write_state(runtime="", layout="", complete=False)
        print("tlhelpers changed while the book was built: build again.", file=sys.stderr)
        return 1
    write_state(runtime=key, layout=layout, complete=True)
    print_times(executions, plain, started, ahead)
    print(f"The book: {relative(HTML / 'index.html')}, {size_of(HTML) / 1e6:.1f} MB in all.")
    return 0


def page(name: str) -> int:
    """Execute and build one chapter, with the pages that its references need."""
    chapter = find_chapter(name)
    if chapter is None:
        return 2
    started = time.time()
    prepare()
    # A few pages are quickly written; what takes time, the outputs, is in the cache.
    remove(PAGE)
    PAGE.mkdir(parents=True)
    write_page_config(chapter)
    write_static()
    stand_in(LEDGER, FRONT, MAP, COSTS)
    print(f"Building {relative(chapter)}.")
    options = ["--config", str(PAGE / "_config.yml"), "--toc", str(PAGE / "_toc.yml")]
    status = jupyter_book(["-W", "--keep-going", "--path-output", str(PAGE), *options])
    executions, plain = executions_of(PAGE / "_build" / ".doctrees")
    if failed := report_failures(executions, status):
        return failed
    print_times(executions, plain, started)
    built = PAGE / "_build" / "html" / "chapters" / f"{chapter.stem}.html"
    print(f"The page: {relative(built)}")
    return 0


def serve(port: int, *, browser: bool) -> int:
    """Show the built book at an address of this machine until interrupted."""
    if not (HTML / "index.html").is_file():
        return complain("There is no built book yet. Build it first: python tools/book.py build")
    handler = functools.partial(QuietHandler, directory=str(HTML))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        return complain(f"Port {port} cannot be used ({error.strerror}); choose another one.")
    address = f"http://127.0.0.1:{server.server_port}/"
    print(f"The book is at {address} -- Ctrl-C ends it.", flush=True)
    if browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    return 0


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A file server that mentions only what it could not serve."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests that succeed are no news."""


# What may be reused


def prepare() -> str:
    """Drop every kept output that another state of the package made; today's runtime key."""
    check_installation()
    key = runtime_key()
    state = read_state()
    if state.get("runtime") != key:
        if EXECUTED.is_dir():
            print("tlhelpers or an installed version changed: every page is executed anew.")
        remove(EXECUTED, DATA_CACHE, HTML, DOCTREES, PAGE)
        write_state(runtime=key, layout="", complete=False)
    return key


def runtime_key() -> str:
    """A hash of all that decides over what a page's code prints, besides that code itself."""
    versions = sorted(
        f"{distribution.metadata['Name']}=={distribution.version}"
        for distribution in importlib.metadata.distributions()
    )
    parts = [
        platform.python_version(),
        platform.machine(),
        *versions,
        fingerprint([ROOT / "tlhelpers", ROOT / "constraints.txt"]),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash of the names and bytes of files, and of all files in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{file.relative_to(ROOT)}\0{content}\n".encode())
    return digest.hexdigest()


def read_state() -> dict[str, object]:
    """What the last build left behind; nothing, if that cannot be read."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(**state: object) -> None:
    """Keep the state for the next build, whole or not at all."""
    BUILD.mkdir(exist_ok=True)
    fresh = STATE.with_suffix(".new")
    fresh.write_text(json.dumps(state))
    fresh.replace(STATE)


def remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def check_installation() -> None:
    """End with a sentence if this Python lacks jupyter-book 1 or imports another tlhelpers."""
    advice = 'Install with: pip install -c constraints.txt -e ".[book,test]"'
    if importlib.util.find_spec("jupyter_book") is None:
        raise SystemExit(f"This Python has no jupyter-book. {advice}")
    version = importlib.metadata.version("jupyter-book")
    if not version.startswith("1."):
        raise SystemExit(f"The book needs jupyter-book 1, found {version}. {advice}")
    spec = importlib.util.find_spec("tlhelpers")
    if spec is None or spec.origin is None:
        raise SystemExit(f"This Python has no tlhelpers. {advice}")
    found = Path(spec.origin).resolve()
    if not found.is_relative_to(ROOT):
        raise SystemExit(
            f"The pages would import tlhelpers from {found.parent}, not from here. {advice}"
        )


# Running the code


def page_environment() -> dict[str, str]:
    """What a page's code sees of the environment: nothing of the reader's own data."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TLHELPERS_") and name != "MPLBACKEND"
    }
    return environment | {
        "TLHELPERS_QUIET": "1",
        "TLHELPERS_CACHE": str(DATA_CACHE),
        "PYTHONUNBUFFERED": "1",
        "TLHELPERS_STATIC": "1",  # a page's reader has no kernel to answer a control
    }


def pages_with_code() -> list[Path]:
    """The notebooks of the table of contents, in its order."""
    import yaml

    def files(part: dict[str, Any]) -> list[str]:
        inner = [*part.get("parts", []), *part.get("chapters", []), *part.get("sections", [])]
        own = [name for name in (part.get("root"), part.get("file")) if name]
        return own + [name for one in inner for name in files(one)]

    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    notebooks = [ROOT / f"{name}.ipynb" for name in files(contents)]
    return [notebook for notebook in notebooks if notebook.is_file()]


def execute_ahead(pages: Sequence[Path]) -> set[str]:
    """Run the pages of which no result is kept, side by side, and keep their results.

    A page that fails keeps none. So jupyter-book runs it once more, and reports it.

    Returns:
        the names of the pages that ran without a failure.
    """
    import nbformat
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    cache = get_cache(str(EXECUTED))
    waiting = {}
    for page in pages:
        notebook = nbformat.read(page, as_version=4)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            waiting[page] = notebook
    if not waiting:
        return set()
    done = set()
    side_by_side = min(len(waiting), os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // side_by_side)
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        runs = {
            pool.submit(execute, notebook, page, threads): page
            for page, notebook in waiting.items()
        }
        for run in concurrent.futures.as_completed(runs):
            page, measured = runs[run], run.result()
            name = page.relative_to(ROOT).with_suffix("").as_posix()
            if measured is None:
                print(f"  {name}: failed; it is run again for the report", flush=True)
                continue
            seconds = measured["execution_seconds"]
            print(f"  {name}: executed notebook in {seconds:.2f} seconds", flush=True)
            # Here and not in the threads: the cache is a database of one connection.
            bundle = CacheBundleIn(waiting[page], str(page), data=measured)
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            done.add(name)
    return done


def executed(pages: Sequence[Path]) -> dict[Path, Any]:
    """The pages' cells of code with their outputs; a result holds no text.

    A page without a result has failed, and is left out; the build is going to say so.
    """
    import nbformat
    from jupyter_cache import get_cache

    cache, found = get_cache(str(EXECUTED)), {}
    for page in pages:
        notebook = nbformat.read(page, as_version=4)
        with contextlib.suppress(KeyError):
            found[page] = cache.get_cache_bundle(cache.match_cache_notebook(notebook).pk).nb
    return found


def write_included(notebooks: dict[Path, Any]) -> None:
    """Write what pages include and no one can type: ledger, figures, map, and costs."""
    import costs
    import front
    import ledger

    from tlhelpers.records import claims_in

    claims = {page.name: (title(page), claims_in(cells)) for page, cells in notebooks.items()}
    LEDGER.write_text(ledger.page(claims), encoding="utf-8")
    FRONT.write_text(front.figure(), encoding="utf-8")
    SHARE.write_bytes(front.share(configuration()["title"]))
    MAP.write_text(front.chapters(numbered_by_part(notebooks)), encoding="utf-8")
    numbered = [page for page in notebooks if page.stem[:2].isdigit()]
    COSTS.write_text(costs.page(measured(numbered), versions()), encoding="utf-8")


def stand_in(*included: Path) -> None:
    """Put a line where only the whole book can say something, and has not been built yet."""
    for path in included:
        if not path.exists():
            path.write_text("*What stands here comes with the whole book: make book.*\n", "utf-8")


def measured(pages: Sequence[Path]) -> list[Any]:
    """What the cache knows of the run of each page, as ``costs.page`` takes it."""
    import costs
    import nbformat
    from jupyter_cache import get_cache

    cache, found = get_cache(str(EXECUTED)), []
    for page in pages:
        notebook = nbformat.read(page, as_version=4)
        kept = cache.match_cache_notebook(notebook)
        seconds, peak = (kept.data.get(key) for key in ("execution_seconds", "peak_bytes"))
        run = costs.Measured(seconds, peak, kept.created.date())
        found.append((page.name, title(page), notebook, run))
    return found


def versions() -> dict[str, str]:
    """What ran the pages, by name; a change in any of them has them run anew."""
    names = [name for name in ("tlhelpers", "torch", "numpy") if importlib.util.find_spec(name)]
    return {"Python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def write_static() -> None:
    """Write the scripts that no one can type: the weights that a page runs in the browser."""
    import weights

    weights.write(STATIC)


def title(page: Path) -> str:
    """The heading of a notebook."""
    import nbformat

    first = nbformat.read(page, as_version=4).cells[0].source
    return str(first.splitlines()[0].lstrip("# "))


def numbered_by_part(notebooks: dict[Path, Any]) -> dict[str, list[tuple[str, str, Any]]]:
    """The numbered chapters under the captions of their parts: file, title, outputs."""
    import yaml

    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = {}
    for part in contents.get("parts", []):
        paths = [ROOT / f"{chapter['file']}.ipynb" for chapter in part["chapters"]]
        chapters = [
            (p.stem, title(p), notebooks[p])
            for p in paths
            if p in notebooks and p.stem[:2].isdigit()
        ]
        if chapters:
            found[part["caption"]] = chapters
    return found


def execute(notebook: Any, page: Path, threads: int) -> dict[str, Any] | None:
    """Run a notebook in place, in its folder.

    Returns:
        what is kept with its result: the seconds it took, and the most memory that its kernel
        held, in bytes or None; nothing at all if a cell failed.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=cell_timeout(),
        resources={"metadata": {"path": str(page.parent)}},
        record_timing=False,  # else the times would be a part of the key in the cache
    )
    peaks: list[int | None] = []

    def note(**_: Any) -> None:
        """Called after each cell, since the kernel is gone when the notebook has ended."""
        manager: Any = client.km
        peaks.append(peak_memory(manager.provisioner.pid))

    client.on_cell_executed = note
    environment = page_environment() | {"OMP_NUM_THREADS": str(threads)}
    try:
        client.execute(env=environment, stderr=subprocess.DEVNULL)
    except (CellControlSignal, DeadKernelError):
        return None
    seconds = time.perf_counter() - started
    return {"execution_seconds": seconds, "peak_bytes": peaks[-1] if peaks else None}


def peak_memory(process: int) -> int | None:
    """The most memory that a running process has held, in bytes; Linux tells, others do not.

    Not the count that ``resource.getrusage`` gives of a child: that begins with what the process
    held from which it was started.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def cell_timeout() -> int:
    """Seconds that the book's configuration gives one cell."""
    return int(configuration()["execute"]["timeout"])


# jupyter-book


def jupyter_book(options: Sequence[str]) -> int:
    """Run ``jupyter-book build`` over this folder; show warnings, and pages as they run."""
    entry = "from jupyter_book.cli.main import main; main(prog_name='jupyter-book')"
    command = [sys.executable, "-c", entry, "build", *options, str(ROOT)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=page_environment(),
        text=True,
        encoding="utf-8",
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    warnings = threading.Thread(target=forward_warnings, args=(process.stderr,))
    warnings.start()
    for line in process.stdout:
        if found := EXECUTION.search(COLOUR.sub("", line)):
            print(f"  {found[1]}: {found[2][0].lower()}{found[2][1:]}", flush=True)
    warnings.join()
    return process.wait()


def forward_warnings(stream: IO[str]) -> None:
    for line in stream:
        if not KERNEL_NOTICE.search(line):
            print(line, end="", file=sys.stderr, flush=True)


def executions_of(doctrees: Path) -> tuple[list[Execution], int]:
    """The executed pages, and the number of pages without code, of the last build.

    Nothing is known of a build that ended before it had read the pages; its exit status
    tells of that.
    """
    from myst_nb.sphinx_ import NbMetadataCollector  # type: ignore[import-untyped]

    pickled = doctrees / "environment.pickle"
    if not pickled.is_file():
        return [], 0
    with open(pickled, "rb") as stream:
        environment = pickle.load(stream)  # written by our own build a moment ago

    executions, plain = [], 0
    for name in sorted(environment.found_docs):
        result = NbMetadataCollector.get_exec_data(environment, name)
        if result is None:
            plain += 1
            continue
        # A failure without a traceback (there is none known) must not count as a success.
        traceback = None if result["succeeded"] else result["traceback"] or str(result["error"])
        executions.append(Execution(name, result["runtime"], traceback, result["mtime"]))
    return executions, plain


def report_failures(executions: Sequence[Execution], status: int) -> int:
    """Name what failed; the exit status, which is 0 only if nothing did.

    The pages are asked themselves, since a setting that mutes the warning of a failed cell
    would otherwise make a failed build succeed.
    """
    failed = [execution for execution in executions if execution.traceback is not None]
    for execution in failed:
        print(f"\nFAILED {execution.page}\n{execution.failure()}", file=sys.stderr)
    if failed or status:
        print("\nThe book is not complete: the cause stands above.", file=sys.stderr)
    return status or int(bool(failed))


def print_times(
    executions: Sequence[Execution], plain: int, started: float, ahead: Collection[str] = ()
) -> None:
    """The seconds of each executed page, and whether it ran now or in an earlier build."""
    width = max([len(execution.page) for execution in executions], default=0) + 2
    print(f"\n{'page':<{width + 10}}seconds")
    for execution in executions:
        # What ran ahead bears the cache's time, which is of another time zone.
        now = execution.page in ahead or execution.finished >= started
        when = "" if now else "  kept from an earlier build"
        seconds = "?" if execution.seconds is None else f"{execution.seconds:.1f}"
        print(f"{execution.page:<{width}}{seconds:>17}{when}")
    total = sum(execution.seconds or 0.0 for execution in executions)
    print(f"{'all code':<{width}}{total:>17.1f}")
    print(f"{'this build':<{width}}{time.time() - started:>17.1f}  with {plain} plain pages\n")


# One page


def find_chapter(name: str) -> Path | None:
    """The file of chapter ``"08"``, ``"08-stanford-dogs"`` or ``"glossary"``; else say which."""
    pages = sorted(
        path for path in (ROOT / "chapters").iterdir() if path.suffix in (".ipynb", ".md")
    )
    found = [path for path in pages if path.stem == name or path.stem.startswith(f"{name}-")]
    if len(found) == 1:
        return found[0]
    stems = ", ".join(path.stem for path in pages)
    complain(f"{len(found)} pages are called {name!r}; there are: {stems}.")
    return None


def write_page_config(chapter: Path) -> None:
    """The book's configuration, with a table of contents of a few pages."""
    import yaml

    names = [chapter.stem, *COMPANIONS]
    present = [name for name in dict.fromkeys(names) if chapter_exists(name) and name != "index"]
    toc = {
        "format": "jb-book",
        "root": "chapters/index",
        "chapters": [{"file": f"chapters/{name}"} for name in present],
    }
    config = configuration()
    del config["sphinx"]["config"]["share_image"]  # the whole book makes it
    # References to the pages that are left out lead nowhere, which is no error here.
    config["sphinx"]["config"]["suppress_warnings"] = ["myst.domains", "myst.xref_missing", "ref"]
    (PAGE / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    (PAGE / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")


def configuration() -> dict[str, Any]:
    """The book's configuration, for a build whose own lies in another folder."""
    import yaml

    config: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["execute"]["cache"] = str(EXECUTED)  # shared with the whole book
    extensions = config["sphinx"]["local_extensions"]
    config["sphinx"]["local_extensions"] = {n: str(ROOT / path) for n, path in extensions.items()}
    return config


def chapter_exists(stem: str) -> bool:
    return any((ROOT / "chapters" / f"{stem}{suffix}").is_file() for suffix in (".ipynb", ".md"))


# Small things


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def relative(path: Path) -> Path:
    """The path as seen from where the command was called, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def complain(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do what it says; the exit status."""
    parser = argparse.ArgumentParser(prog="book.py", description="Build or show the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="execute the chapters, write _build/html")
    one = commands.add_parser("page", help="execute and build one chapter")
    one.add_argument("name", help="its number or the beginning of its file's name, e.g. 08")
    show = commands.add_parser("serve", help="show the built book in a browser")
    show.add_argument("--port", type=int, default=8000, help="default 8000; 0: any free one")
    show.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(arguments)
    if options.command == "build":
        return build()
    if options.command == "page":
        return page(options.name)
    return serve(options.port, browser=not options.no_browser)


if __name__ == "__main__":
    sys.exit(main())
