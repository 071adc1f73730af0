"""What an import of the runtime loads, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"transformers", "pandas", "pyarrow", "sklearn", "scipy", "click", "rich", "triton"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that the statement leaves in sys.modules of a new interpreter."""
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import sp_runtime",
        "import sp_runtime.kernels.reference",
        "import sp_runtime; [getattr(sp_runtime, name) for name in sp_runtime.__all__]\n"
        "import sp_runtime.block_index_export\n"
        "from sp_runtime.kernels.select import select_kernels; select_kernels('auto', 'cpu')",
    ],
    ids=["package", "reference kernels", "every public name"],
)
def test_imports_stay_slim(statement):
    assert loaded_by(statement) & HEAVY == set()


def test_the_package_itself_loads_no_torch():
    loaded = loaded_by("import sp_runtime; sp_runtime.UsageError; sp_runtime.__version__")
    assert "torch" not in loaded
    assert "sp_runtime" in loaded


def test_an_unknown_name_is_an_attribute_error():
    import sp_runtime

    with pytest.raises(AttributeError, match="no attribute 'attention_please'"):
        _ = sp_runtime.attention_please
