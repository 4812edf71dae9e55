"""What a policy became: scorers, statistics with intervals, evaluation records, figures and the report."""
