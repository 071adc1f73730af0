"""Wheel and source archive build from the tree and work in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"sp_runtime", "sp_profile", "sp_cli"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, source archive); the wheel is built from the source archive."""
    folder, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("tree") / "source"
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    run(sys.executable, "-m", "build", "--outdir", folder, source, cwd=folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_wheel_holds_the_three_packages_and_the_licence(archives: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(archives[0]).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == PACKAGES
    assert "sp_runtime/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/NOTICE") for name in names)
    for package in PACKAGES:
        folder = ROOT / package.replace("sp_cli", "cli")
        for file in folder.rglob("*.py"):
            assert f"{package}/{file.relative_to(folder).as_posix()}" in names


def test_source_archive_holds_what_the_wheel_needs(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "cli/options.py"} <= names


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(
    request: pytest.FixtureRequest,
    archives: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The scripts' folder of a new environment in which one of the archives is installed.

    The third-party packages are lent by the environment of the tests through a path file; the
    editable installation there stays out of reach, since nested path files are not read.
    """
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "env", with_pip=True)
    scripts = folder / "env" / ("Scripts" if sys.platform == "win32" else "bin")
    archive = archives[0] if request.param == "wheel" else archives[1]
    run(scripts / "python", "-m", "pip", "install", "--no-deps", archive, cwd=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = run(scripts / "python", "-c", code, cwd=folder)
    lent = Path(purelib.strip()) / "lent.pth"
    lent.write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}) + "\n")
    return scripts


def test_installed_packages_import_from_the_environment(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sp_runtime, sp_profile, sp_cli; "
        "print(*(m.__file__ for m in (sp_runtime, sp_profile, sp_cli)), sep='\\n')"
    )
    for line in run(installed / "python", "-c", code, cwd=tmp_path).split():
        assert Path(line).is_relative_to(installed.parent)


def test_installed_commands_answer(installed: Path, tmp_path: Path) -> None:
    assert "calibrate" in run(installed / "sp-profile", "--help", cwd=tmp_path)
    assert "prefill" in run(installed / "sp-run", "--help", cwd=tmp_path)
    assert "kernels" in run(installed / "sp-run", "env", "--device", "cpu", cwd=tmp_path)
