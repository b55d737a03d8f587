"""Prints the tables of docs/deployment.md from what `measure` wrote: python -m experiments.deployment.table."""

import json
from typing import Any

from experiments.deployment.measure import RESULTS

MB, GB = 1e6, 1e9


def costs_table(results: dict[str, Any]) -> str:
    """Returns what each way to judge one image costs, as Markdown."""
    head = "| one image | time | share of `before` | processor time | memory | share of `before` |"
    lines = [head, "|---|" + "---:|" * 5]
    for name, cost in results["one_image"].items():
        lines.append(
            f"| {name} | {cost['seconds']:.1f} s | {100 * cost['seconds_ratio']:.0f} % "
            f"| {cost['processor_seconds']:.1f} s | {cost['memory_bytes'] / MB:.0f} MB "
            f"| {100 * cost['memory_bytes_ratio']:.0f} % |"
        )
    return "\n".join(lines)


def sizes_table(results: dict[str, Any]) -> str:
    """Returns the size of each environment on disk, as Markdown."""
    sizes = results["installed_bytes"]
    lines = ["| environment | installed | share of training |", "|---|---:|---:|"]
    for name, size in sizes.items():
        lines.append(f"| {name} | {size / GB:.2f} GB | {100 * size / sizes['training']:.1f} % |")
    return "\n".join(lines)


def speed_table(results: dict[str, Any]) -> str:
    """Returns the speed of each engine by the clock as a multiple of torch's, by batch, as Markdown."""
    batches = list(results["throughput"])
    heads = " | ".join(f"batch {batch}" for batch in batches)
    lines = [f"| times as fast as torch | {heads} |", "|---|" + "---:|" * len(batches)]
    for name in results["throughput"][batches[0]]:
        cells = [f"{results['throughput'][batch][name]['times_torch']:.2f}" for batch in batches]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    results = json.loads(RESULTS.read_text("utf-8"))
    print(f"{results['processor']}, {results['threads']} threads, {results['speed_threads']} for images per second\n")
    print("\n\n".join(table(results) for table in (sizes_table, costs_table, speed_table)))
    if seconds := results.get("winclip_seconds"):
        print(
            f"\nanomalib's WinCLIP: {seconds['torch']:.2f} s per image with torch, {seconds['openvino']:.2f} exported."
        )


if __name__ == "__main__":
    main()
