"""The weights that the page *Try it yourself* runs in the browser, as a script.

``tools/book.py`` calls :func:`write` at each build. The script holds the weights file of the
package as it is: nothing is converted, so nothing can differ. It is a script because a page that
was saved to disk may load scripts, and may not read other files.
"""

from __future__ import annotations

import base64
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "tlhelpers" / "data" / "weights" / "letters.safetensors"
SCRIPT = Path("try-it") / "weights.js"  # below the folder of static files


def write(folder: Path) -> Path:
    """Write the script below a folder of static files; its path."""
    path = folder / SCRIPT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(WEIGHTS.read_bytes()), encoding="utf-8")
    return path


def script(weights: bytes) -> str:
    """A script that leaves the bytes of a safetensors file, as base64, in ``TryIt.weights``."""
    encoded = base64.b64encode(weights).decode("ascii")
    return f'var TryIt = TryIt || {{}};\nTryIt.weights = "{encoded}";\n'
