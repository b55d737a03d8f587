"""What heads are made of: scoring, losses, adapters, memory banks."""
