"""The picture of the schedules is what the code gives."""

import importlib.util
import sys
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "draw_schedules.py"


def tool():
    spec = importlib.util.spec_from_file_location("draw_schedules", SCRIPT)
    module = sys.modules["draw_schedules"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_picture_of_the_schedules_is_up_to_date():
    assert tool().main(check=True) == 0, "run `python tools/draw_schedules.py`"


def test_picture_of_the_closed_loop_can_be_drawn():
    """Not compared: the simulated world's last digits are the processor's."""
    drawn = ElementTree.fromstring(tool().closed_loop())
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 + 3 * 2
    assert all(len(line.get("points").split()) > 30 for line in lines)
