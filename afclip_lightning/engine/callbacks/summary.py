"""The summary of a model at the start of training."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_summary import get_human_readable_count

FLOPS = "FLOPs"


class ParameterSummary(ModelSummary):
    """Lightning's summary, without operations (FLOPs) if they were not counted.

    Lightning counts them only for a model with an `example_input_array`, and prints 0 for all others.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Prints the summary; for the arguments see Lightning."""
        if total_flops:
            modes = total_training_modes
            ModelSummary.summarize(
                summary_data, total_parameters, trainable_parameters, model_size, modes, total_flops, **summarize_kwargs
            )
            return
        columns = [[name, *map(str, cells)] for name, cells in summary_data if name != FLOPS]
        widths = [max(map(len, column)) for column in columns]
        lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*columns, strict=True)]
        rule = "-" * max(map(len, lines))
        counts = {"trained": trainable_parameters, "frozen": total_parameters - trainable_parameters}
        total = ", ".join(f"{get_human_readable_count(count).strip()} {name}" for name, count in counts.items())
        rank_zero_info("\n".join(["", lines[0], rule, *lines[1:], rule, f"Parameters: {total}"]))
