"""Make the records of chapter 13: from printed to handwritten digits, without target labels.

    python experiments/adaptation.py

About seven minutes of one CPU core: two for the comparison, three and a half for the larger
network, one for the weights of the MMD.
"""

from __future__ import annotations

import study_command

from tlhelpers import adapt_study

STUDIES = {
    "compare": adapt_study.compare,
    "larger": adapt_study.larger,
    "strength": adapt_study.strength,
    "skew": adapt_study.skew,
    "few_labels": adapt_study.few_labels,
}


if __name__ == "__main__":
    study_command.save_studies(__doc__, STUDIES)
