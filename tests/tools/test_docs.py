"""The generated pages say what the code says."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "docs.py"


def test_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("docs", SCRIPT)
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    assert docs.main(check=True) == 0, "run `python tools/docs.py`"
