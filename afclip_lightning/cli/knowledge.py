"""`python -m afclip_lightning knowledge`: show or build a knowledge base of sentences."""

import argparse
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from afclip_lightning.knowledge import base
from afclip_runtime.cli.parser import CommandParser, command
from afclip_runtime.errors import PROGRAM, UserError, message_of, shown
from afclip_runtime.files import write_text

if TYPE_CHECKING:
    from afclip_lightning.data.base import AnomalyDataModule
    from afclip_lightning.knowledge.builder import Question

KEY_VARIABLE = "OPENAI_API_KEY"
PLACE = 11
DESCRIPTION = """\
show      checks and prints a knowledge base of this package, or a file
build     asks an OpenAI-compatible server for a new one: sentences on each category and, with --vision_model, one on
          each anomalous image that training would read

Each answer is stored beside the output at once, so the same command resumes after a stop. The key is read from an
environment variable and never written. Only `build` uses the network, and only its endpoint.
"""


@command("Stopped. What was answered is kept; the same command goes on from there.")
def main(args: Sequence[str]) -> int:
    """Runs the command and returns its exit code: 0 done, 2 a mistake that the message explains, 130 interrupted."""
    options, rest = _parser().parse_known_args(args)
    if options.verb == "build":
        return _build(options, rest)
    if rest:
        raise UserError(f"show takes no {rest[0]}.")
    print(_render(options.source))
    return 0


def _render(source: str) -> str:
    sentences, images = base.load_knowledge(source), base.load_image_sentences(source)
    lines = [f"{key}: {value}" for key, value in base.load_provenance(source).items()]
    lines += [f"sha256: {base.knowledge_digest(sentences)}", ""]
    for category, texts in sentences.items():
        lines += [category, *(f"  {base.count_tokens(text):2} tokens  {text}" for text in texts)]
    lines += [f"{path}\n  {base.count_tokens(text):2} tokens  {text}" for path, text in images.items()]
    return "\n".join(map(shown, lines))


def _build(options: argparse.Namespace, rest: Sequence[str]) -> int:
    if options.sentences < 1:
        raise UserError(f"--sentences must be at least 1, got {options.sentences}.")

    from afclip_lightning.datasets.catalogue import find_dataset  # imports torch and more, which `--help` does not need
    from afclip_lightning.knowledge import builder
    from afclip_lightning.knowledge.chat import ChatServer

    dataset = find_dataset(options.dataset, rest, options.root)
    texts = _category_questions(dataset, options.model, options.sentences)
    pictures = _image_questions(dataset, options.vision_model) if options.vision_model else []
    if options.dry_run:
        for question in (*texts, *pictures):
            print(f"--- {question.about} ({question.model})\n{question.prompt}\n")
        return 0
    if not options.endpoint:
        raise UserError("build needs --endpoint URL, the server to ask; --dry_run prints the questions without one.")
    if options.out is None:
        raise UserError("build needs --out FILE, the base to write.")
    if options.out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{options.out}: the name of a base must end in .yaml.")
    if options.out.exists():
        raise UserError(f"{options.out} already exists. Remove it or choose another --out.")
    server = ChatServer(options.endpoint, _key(options.key_variable), options.timeout)
    cache = builder.AnswerCache(options.out.with_suffix(".answers.jsonl"))
    try:
        found, asked = builder.answer_all([*texts, *pictures], server, cache)
    except UserError as error:
        raise UserError(
            f"{message_of(error)}\nWhat was answered is kept in {cache.path}: the same command goes on from there."
        ) from error
    provenance = {
        "generator": options.model,
        **({"image_generator": options.vision_model} if pictures else {}),
        "endpoint": server.endpoint,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "prompts": base.knowledge_digest({"category": builder.CATEGORY_PROMPT, "image": builder.IMAGE_PROMPT}),
    }
    sentences = {question.about: found[question.about] for question in texts}
    images = {question.about: found[question.about][0] for question in pictures}
    write_text(options.out, base.render_base(sentences, images, provenance))
    print(
        f"{options.out} is written: {len(sentences)} × {options.sentences} sentences on categories, {len(images)} on "
        f"images; {asked} of {len(found)} answers are new."
    )
    return 0


def _category_questions(dataset: "AnomalyDataModule", model: str, count: int) -> "list[Question]":
    from afclip_lightning.knowledge.builder import category_question

    categories = dataset.selected_categories()
    if not categories:
        raise UserError(f"{dataset.root} has no category. Give the dataset's folder as --root.")
    return [category_question(model, category, dataset.class_name_of(category), count) for category in categories]


def _image_questions(dataset: "AnomalyDataModule", model: str) -> "list[Question]":
    from afclip_lightning.knowledge.builder import image_question

    dataset.check()
    split = dataset.train_split
    anomalous = [sample for sample in dataset.samples(split) if sample.label == 1]
    if not anomalous:
        raise UserError(f"{dataset.root}: the {split} split, which is used for training, has no anomalous image.")
    return [
        image_question(
            model,
            Path(os.path.relpath(sample.image_path, dataset.root)).as_posix(),
            dataset.class_name_of(sample.category),
            sample.image_path,
        )
        for sample in anomalous
    ]


def _key(variable: str | None) -> str:
    """Returns the key. A variable that was named must be set. Without a name the key is optional (local servers)."""
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not key:
        raise UserError(f"The variable {variable}, which --key_variable names, is not set.")
    return key


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(f"{PROGRAM} knowledge", description=DESCRIPTION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{show,build}")
    show = verbs.add_parser("show")
    show.add_argument("source", metavar="NAME", help=f"{', '.join(base.bases())}, or a file ending in .yaml")
    build = verbs.add_parser("build")
    build.add_argument(
        "--dataset", required=True, metavar="NAME", help="a dataset, or a class, whose arguments are options"
    )
    build.add_argument(
        "--root", type=Path, metavar="DIR", help="folder of the dataset, if images or categories are read from it"
    )
    build.add_argument("--endpoint", metavar="URL", help="URL of the server; requests go to {URL}/v1/chat/completions")
    build.add_argument("--model", required=True, metavar="NAME", help="model that describes the categories")
    build.add_argument("--vision_model", metavar="NAME", help="model that describes the images; by default none does")
    build.add_argument("--out", type=Path, metavar="FILE", help="knowledge base to write, ending in .yaml")
    build.add_argument("--sentences", type=int, default=5, metavar="N", help="sentences per category (%(default)s)")
    build.add_argument(
        "--key_variable", metavar="NAME", help=f"environment variable that holds the key ({KEY_VARIABLE}, if set)"
    )
    build.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="time limit per answer, in seconds (%(default)g)"
    )
    build.add_argument("--dry_run", action="store_true", help="print the questions and send nothing")
    return parser
