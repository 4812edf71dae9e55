"""The reference store: log-probs of the reference model, found by what they are log-probs of."""
