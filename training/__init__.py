"""Model, token streams, losses, training loop, checkpoints, SFT, rollouts, rewards and GRPO."""
