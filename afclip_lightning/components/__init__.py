"""Parts of heads: scoring, losses, adapters, attention, memory banks, pseudo anomalies."""
