"""Reader of anyone's brain reports: findings, negation, certainty, sides, places and sizes, by fixed rules."""
