"""Writes the corpus of hostile files: `python tests/hostile/make_corpus.py`.

base/ holds valid files, corpus/ one file a case of json_cases, table_cases and shard_cases, named
after it. Everything is committed, so that a case stays what it was when a library changes. What is
already there stays, unless --all asks for it anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
SUFFIXES = {"profiles": ".json", "tables": ".parquet", "shards": ".npz"}


def load(name: str, folder: Path = HERE) -> ModuleType:
    """A module beside this one: test folders are no packages."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def cases() -> dict[str, tuple[str, ...]]:
    """The names of all cases by kind."""
    return {
        "profiles": tuple(load("json_cases").JSON_CASES),
        "tables": tuple(load("table_cases").TABLE_CASES),
        "shards": tuple(load("shard_cases").SHARD_CASES),
    }


def path_of(kind: str, name: str) -> Path:
    return HERE / "corpus" / kind / f"{name}{SUFFIXES[kind]}"


def make(kind: str, name: str) -> bytes:
    """One hostile file, from the valid one."""
    if kind == "profiles":
        change, _ = load("json_cases").JSON_CASES[name]
        return change((HERE / "base" / "minimal.json").read_bytes())
    if kind == "tables":
        case = load("table_cases").TABLE_CASES[name]
        return case.make((HERE / "base" / "profile" / case.table).read_bytes())
    change, _ = load("shard_cases").SHARD_CASES[name]
    return change((HERE / "base" / "shard.npz").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="make everything anew")
    everything = parser.parse_args().all
    made = 0
    for kind, names in cases().items():
        for name in names:
            path = path_of(kind, name)
            if everything or not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(make(kind, name))
                made += 1
    print(f"{made} files written under {HERE / 'corpus'}")


if __name__ == "__main__":
    main()
