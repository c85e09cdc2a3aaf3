"""Rewards: what an answer is worth in training. `reward` sums terms, `terms` has them, `child` runs strange code.

A reward is a function from (prompt, answer, row) to a number. Skill and format are kept apart all the way. Importing
this package imports nothing heavy.
"""

from __future__ import annotations

from whit.rewards.reward import Grade, Reward, make_reward

__all__ = ["Grade", "Reward", "make_reward"]
