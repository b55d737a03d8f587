"""What a run does beside training and testing: results, pictures, predictions, records, preemption."""
