"""llava.constants against the recorded values."""

import json

from llava import constants
from tests.conftest import VECTORS as TEST_VECTORS

VECTORS = TEST_VECTORS / "llava"


def test_constants() -> None:
    recorded = json.loads((VECTORS / "constants.json").read_text())
    assert {name: getattr(constants, name) for name in recorded} == recorded
