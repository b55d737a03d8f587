"""What heads are made of: scoring, losses, adapters, attention, memory banks, pseudo anomalies."""
