"""The proof: how answers are read and scored, compared in pairs, judged and reported.

`answers` reads, `scoring` scores, `statistics` compares, `verdict` judges, `baselines` is the
smallest tool that may do the job, `card` keeps what is known of an adapter, `report` shows it.
The rules are in docs/proof.md. Importing this package imports nothing heavy.
"""

from __future__ import annotations

from whit.evaluation.scoring import Score, Scorer, make_scorer
from whit.evaluation.verdict import Comparison, Verdict, compare

__all__ = ["Comparison", "Score", "Scorer", "Verdict", "compare", "make_scorer"]
