"""Workflows, citation, versions and the files that people look for at the root."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# GitHub's own actions, by the major version that was read.
ACTIONS = {
    "actions/checkout@v4",
    "actions/setup-python@v5",
    "actions/upload-artifact@v4",
    "actions/download-artifact@v4",
}


def workflow(path):
    document = yaml.safe_load(path.read_text("ascii"))
    document["on"] = document.pop(True)  # YAML 1.1 reads the key `on` as true
    return document


def steps(document):
    return [step for job in document["jobs"].values() for step in job.get("steps", ())]


def scripts():
    return [step["run"] for path in WORKFLOWS for step in steps(workflow(path)) if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_well_formed(path):
    document = workflow(path)
    assert {"name", "on", "permissions", "jobs"} == document.keys() - {"concurrency", "env"}
    assert document["permissions"] == {"contents": "read"}
    for name, job in document["jobs"].items():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file(), name
            assert "workflow_call" in workflow(ROOT / job["uses"])["on"]
            continue
        assert job["runs-on"] == "ubuntu-latest"
        assert 0 < job["timeout-minutes"] <= 120
        assert set(job.get("needs", ())) <= document["jobs"].keys()
    for step in steps(document):
        assert ("uses" in step) != ("run" in step)
        assert step.get("uses", next(iter(ACTIONS))) in ACTIONS


def test_there_is_one_for_tests_documentation_and_publication():
    assert {path.stem for path in WORKFLOWS} >= {"test", "docs", "publish"}


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    lines = [
        re.sub(r"\$\{\{.*?\}\}", "x", line) for each in scripts() for line in each.splitlines()
    ]
    called = [shlex.split(line) for line in lines]
    made = {word for words in called if words[0] == "make" for word in words[1:] if "=" not in word}
    assert {"lint", "test", "docs"} <= made <= targets


def test_only_publication_may_ask_for_an_identity_and_it_waits_for_the_tests():
    for path in WORKFLOWS:
        for name, job in workflow(path)["jobs"].items():
            permissions = job.get("permissions", {})
            if (path.stem, name) == ("publish", "publish"):
                assert permissions == {"id-token": "write"}
                assert set(job["needs"]) == {"test", "build"}
                assert job["environment"] == "release"
            else:
                assert permissions == {}
    assert workflow(ROOT / ".github" / "workflows" / "publish.yml")["on"] == {
        "push": {"tags": ["v*"]}
    }
    text = "".join(path.read_text("ascii") for path in WORKFLOWS)
    assert "secrets." not in text


@pytest.fixture
def checkout(tmp_path):
    """The files that a release names its version in, under tag v0.1.0."""
    (tmp_path / "sp_runtime").mkdir()
    for name in ("sp_runtime/version.py", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 - 2026-11-22\n")
    return tmp_path


@pytest.fixture(scope="module")
def check_version():
    path = ROOT / ".ci" / "check-version"
    loader = importlib.machinery.SourceFileLoader("check_version", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_a_release_needs_its_version_everywhere(checkout, check_version):
    assert check_version.problems("v0.1.0", checkout) == []
    assert "not that of version 0.1.0" in check_version.problems("v0.2.0", checkout)[0]
    assert check_version.problems("0.1.0", checkout)
    (checkout / "CHANGELOG.md").write_text("## Unreleased\n")
    assert check_version.problems("v0.1.0", checkout) == ["CHANGELOG.md has no section for 0.1.0"]
    citation = checkout / "CITATION.cff"
    citation.write_text(citation.read_text().replace("version: 0.1.0", "version: 0.0.9"))
    assert "cites version 0.0.9" in check_version.problems("v0.1.0", checkout)[0]


def test_the_citation_is_one():
    document = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    # What version 1.2.0 of the format requires, and the keys that it knows of those used here.
    assert document["cff-version"] == "1.2.0"
    assert {"authors", "cff-version", "message", "title"} <= document.keys()
    known = {"abstract", "authors", "cff-version", "keywords", "license", "message", "references"}
    assert document.keys() <= known | {"title", "type", "version"}
    assert document["type"] == "software"
    assert isinstance(document["version"], str)
    for people in (document["authors"], *(each["authors"] for each in document["references"])):
        for person in people:
            assert person.keys() in ({"name"}, {"family-names", "given-names"})
    for reference in document["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        for identifier in reference["identifiers"]:
            assert identifier["type"] in ("doi", "url", "swh", "other")
            assert identifier["value"]
    assert any("2505.19578" in reference["url"] for reference in document["references"])


def test_the_citation_names_this_version_and_licence():
    from sp_runtime.version import __version__

    document = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert document["version"] == __version__
    assert f'license = "{document["license"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md"])
def test_the_files_they_name_exist(name):
    text = (ROOT / name).read_text("utf-8")
    named = re.findall(r"`((?:tests|sp_runtime|benchmarks|docs)/[\w./-]*)`", text)
    named += re.findall(r"\]\(([\w./-]+)\)", text)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path
    targets = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in targets, target


def test_the_bounds_of_versions_are_those_of_the_package():
    text = " ".join((ROOT / "docs" / "versioning.md").read_text("utf-8").split())
    package = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '"torch>=2.11"' in package
    assert "torch 2.11 and later" in text
    assert '"triton>=3.6;' in package
    assert "Triton 3.6 and later" in text
    assert '"transformers>=5.17,<6"' in package
    assert "transformers 5.17 up to, not including, 6" in text
    assert 'requires-python = ">=3.10"' in package
    assert "Python 3.10 to 3.13" in text
