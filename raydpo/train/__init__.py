"""Training on one rank: the DeepSpeed engine, the step, the loop, committed checkpoints, the export. No Ray here."""
