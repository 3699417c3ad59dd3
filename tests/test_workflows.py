"""The workflows: valid, careful with what they may do, and one issue for all that fails weekly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".github/workflows"
NAMES = ("ci", "release", "weekly")

# The keys under which the permission to write is needed, each in a job that runs nothing of ours.
WRITING = {
    "ci": {"publish": {"pages", "id-token"}},
    "release": {"publish": {"contents"}},
    "weekly": {"tell": {"issues"}},
}


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text("utf-8"))


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def test_every_workflow_is_checked_here() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", str(path)]
    return subprocess.run(command, text=True, capture_output=True)


def test_the_workflows_follow_the_published_schema_and_a_slip_would_be_seen(tmp_path: Path) -> None:
    for name in NAMES:
        done = check(FOLDER / f"{name}.yml")
        assert done.returncode == 0, done.stdout + done.stderr
    slip = tmp_path / "slip.yml"
    slip.write_text((FOLDER / "ci.yml").read_text("utf-8").replace("runs-on:", "run-on:", 1))
    assert check(slip).returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_to_a_commit(name: str) -> None:
    text = (FOLDER / f"{name}.yml").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        # GitHub's own only: others would be trusted with what they can read.
        assert re.fullmatch(r"(- )?uses: actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_version_of_an_action() -> None:
    used = {step["uses"] for name in NAMES for step in steps(name) if "uses" in step}
    names = [one.partition("@")[0] for one in used]
    assert len(names) == len(set(names)), sorted(used)


@pytest.mark.parametrize("name", NAMES)
def test_only_jobs_that_run_no_code_of_the_project_may_write(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    writing = {}
    for key, job in found["jobs"].items():
        rights = {what for what, how in job.get("permissions", {}).items() if how == "write"}
        if rights:
            writing[key] = rights
            assert not any("checkout" in step.get("uses", "") for step in job["steps"])
            assert not any("make " in step.get("run", "") for step in job["steps"])
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
    assert writing == WRITING[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_job_ends_and_no_two_runs_stand_in_each_others_way(name: str) -> None:
    found = workflow(name)
    assert "group" in found["concurrency"]
    assert all(job["timeout-minutes"] <= 180 for job in found["jobs"].values())


def test_what_must_pass_before_a_release() -> None:
    jobs = workflow("release")["jobs"]
    run = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    targets = {*jobs["check"]["strategy"]["matrix"]["target"], *re.findall(r"make ([\w-]+)", run)}
    assert targets == {"test", "test-oldest", "test-newest", "colab-check", "epub", "pdf"}
    assert set(jobs["publish"]["needs"]) == {"check", "build"}


# Stands in for GitHub's command: notes what it is asked, and answers as the test wishes.
GH = """\
#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $2" in
  "run view") echo "make test-newest, Colab's container" ;;
  "issue list") printf '%s' "$OPEN" ;;
esac
"""


@pytest.mark.parametrize("already", ["", "17"])
def test_a_failing_week_opens_one_issue_and_then_adds_to_it(tmp_path: Path, already: str) -> None:
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    (script,) = [step["run"] for step in workflow("weekly")["jobs"]["tell"]["steps"]]
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"),
        "OPEN": already, "LABEL": "weekly-checks", "RUN": "5", "WHERE": "https://here/5",
    }  # fmt: skip
    subprocess.run(["bash", "-e", "-c", script], env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    created = [call for call in calls if call.startswith("issue create")]
    comments = [call for call in calls if call.startswith("issue comment")]
    assert (len(created), len(comments)) == ((0, 1) if already else (1, 0))
    told = (created or comments)[0]
    assert "make test-newest, Colab's container. https://here/5" in told
    assert "--label weekly-checks" in told or told.startswith("issue comment 17 ")
    if created:  # by the label that is looked for, or the next week would open another one
        assert any(call.startswith("label create weekly-checks") for call in calls)
        assert any("issue list --state open --label weekly-checks" in call for call in calls)
