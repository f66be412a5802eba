"""The ground floor imports in a moment: the controller and the command line must start without torch."""

import subprocess
import sys

MODULES = ["llava.constants", "llava.conversation", "llava.mm_utils", "llava.utils", "llava.chat", "llava.files"]
HEAVY = ["torch", "transformers", "requests", "gradio", "tokenizers", "numpy"]


def test_ground_floor_loads_nothing_heavy() -> None:
    code = f"import sys, {', '.join(MODULES)}; print([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
