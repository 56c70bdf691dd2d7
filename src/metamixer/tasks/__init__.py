"""Tasks: from a sample to a loss, a metric and a result that a person can see."""
