"""llava.constants against the recorded values."""

import json
from pathlib import Path

from llava import constants

VECTORS = Path(__file__).parent.parent / "vectors" / "llava"


def test_constants() -> None:
    recorded = json.loads((VECTORS / "constants.json").read_text())
    assert {name: getattr(constants, name) for name in recorded} == recorded
