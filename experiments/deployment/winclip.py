"""Runs anomalib's WinCLIP through its OpenVINO export, with random weights: for comparison in `measure`.

It runs in an environment of its own, and needs nothing of this project:

    python -m venv PEER && PEER/bin/pip install -r experiments/deployment/requirements_winclip.txt
    PEER/bin/python experiments/deployment/winclip.py export FOLDER         # minutes; FOLDER/weights/openvino/model.xml
    PEER/bin/python experiments/deployment/winclip.py judge FOLDER IMAGE    # one image, by anomalib's own inferencer
    PEER/bin/python experiments/deployment/winclip.py speed FOLDER          # images per second, beside torch, as JSON

WinCLIP passes an image's windows through the tower one by one, which AF-CLIP does not: seconds per image compare what
users of either get, not how well it is written.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

SIZE, CATEGORY = 240, "bottle"


def build() -> Any:
    """Returns WinCLIP with random weights: the published ones are a download."""
    import open_clip
    import torch
    from anomalib.models import WinClip

    make = open_clip.create_model_and_transforms
    open_clip.create_model_and_transforms = lambda name, **kwargs: make(name, **{**kwargs, "pretrained": None})
    torch.manual_seed(0)
    model = WinClip(class_name=CATEGORY)
    model.setup("test")
    model.model.setup(CATEGORY)
    return model.eval()


def model_file(folder: Path) -> Path:
    """Returns where anomalib's export writes the model."""
    return folder / "weights" / "openvino" / "model.xml"


def export(folder: Path) -> None:
    """Exports the model as anomalib does."""
    build().to_openvino(export_root=folder, input_size=(SIZE, SIZE))


def judge(folder: Path, image: Path) -> None:
    """Prints the score of an image, by anomalib's inferencer for exported models; it does not resize the image."""
    from anomalib.deploy import OpenVINOInferencer
    from PIL import Image

    resized = Image.open(image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    print(OpenVINOInferencer(model_file(folder), device="CPU").predict(resized).pred_score)


def speed(folder: Path, threads: int, rounds: int) -> None:
    """Prints the shortest time of an image over the rounds, in seconds: torch, and the exported model in float32."""
    import openvino
    import torch

    torch.set_num_threads(threads)
    model = build()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model_file(folder), "CPU", settings)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {"torch": [], "openvino": []}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, run in (("torch", lambda: model(image)), ("openvino", lambda: compiled([image.numpy()]))):
                start = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - start)
    print(json.dumps({name: min(seconds[1:]) for name, seconds in taken.items()}))


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("export", "judge", "speed"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "export":
        export(options.folder)
    elif options.what == "judge":
        judge(options.folder, options.image)
    else:
        speed(options.folder, options.threads, options.rounds)


if __name__ == "__main__":
    main()
