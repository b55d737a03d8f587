"""One's own images through a model: scores, verdicts, calibrations, a server, exported graphs."""
