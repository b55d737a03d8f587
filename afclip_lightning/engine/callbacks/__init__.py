"""The callbacks of a run: results, pictures, predictions, records, preemption."""
