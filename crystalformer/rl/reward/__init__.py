"""Rewards: functions from crystals to numbers, larger for better crystals."""
