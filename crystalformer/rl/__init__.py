"""Reinforcement fine-tuning of CrystalFormer: rewards, PPO, DPO."""
