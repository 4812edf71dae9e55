"""Language models: loading, and turning tokens into log-probs with one code path for policy and reference."""
