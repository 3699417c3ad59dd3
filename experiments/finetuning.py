"""Make the records of chapter 05: what each decision in fine-tuning is worth.

    python experiments/finetuning.py

About ten minutes on two CPU cores. Needs no data, but Optuna: ``pip install "tlhelpers[tune]"``.
"""

from __future__ import annotations

import study_command

from tlhelpers import ablation

STUDIES = {
    "ablation": ablation.study,
    "unfreeze": ablation.depth_study,
    "rates": ablation.rates_study,
    "tuning": ablation.tuning_study,
}


if __name__ == "__main__":
    study_command.save_studies(__doc__, STUDIES)
