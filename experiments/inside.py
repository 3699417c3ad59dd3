"""What fine-tuning changes and what maps find of a shortcut: the records of chapter 16.

    python experiments/inside.py

Writes ``inside/finetuned`` and ``inside/shortcuts``; ``--only`` and the second part of a name makes
one of them. About two and a half minutes of one CPU core.
"""

from __future__ import annotations

import study_command

from tlhelpers import inside_study

STUDIES = {f.__name__: f for f in (inside_study.finetuned, inside_study.shortcuts)}


if __name__ == "__main__":
    study_command.save_studies(__doc__, STUDIES)
