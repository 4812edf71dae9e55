"""Pure maths on tensors: losses and metrics per pair. The caller reduces."""
