"""Pure maths on tensors: losses and metrics per row. The caller reduces."""
