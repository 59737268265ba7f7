"""One Megatron learner: layout check, model, packed batches, log-probs, losses, train step, control plane."""
