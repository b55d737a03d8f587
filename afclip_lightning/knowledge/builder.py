"""Asks a language model for what a knowledge base holds: the questions, what makes an answer usable, and its cache.

Answers are kept as they come, by the hash of their prompt, so that a run that ends early goes on where it stopped.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

from PIL import Image
from tqdm import tqdm

from afclip_lightning.data.images import read_image
from afclip_lightning.knowledge.base import MAX_TOKENS, count_tokens
from afclip_lightning.knowledge.chat import ChatServer, TransientError
from afclip_runtime.errors import UserError
from afclip_runtime.files import TABLE_LIMIT, parse_json, read_bytes

ATTEMPTS = 5  # a question
LONGEST_WAIT = 120.0  # seconds that a server may ask for; a run does not sleep through an hour
IMAGE_SIDE = 1024  # pixels that the longer side of a picture is shrunk to

# The first sentences are the paper's questions; the rest makes the answers fit CLIP's context. Change a word and every
# cached answer is asked for again.
CATEGORY_PROMPT = """\
Describe what an abnormal image of {class_name} looks like?

Answer as an inspector of products: a numbered list of exactly {count} sentences and nothing else. Each sentence has \
at most 35 words, makes sense on its own, names the {class_name}, and is about another kind of defect: what can be \
seen, where, in which shape and color."""
IMAGE_PROMPT = """\
Identify anomalies in the input image of the specified class ({class_name}). Describe each anomaly's location, color, \
shape, size, and other characteristics.

Answer with one sentence of at most 35 words and nothing else."""


@dataclass(frozen=True)
class Question:
    """One question to a model.

    Attributes:
        about: The category or the image's path in its dataset, for messages.
        model: Name of the model at the server.
        prompt: The text.
        parse: Returns the sentences of an answer; raises `ValueError` that says what is wrong with it.
        image_path: Image that the question is about, or `None`.
    """

    about: str
    model: str
    prompt: str
    parse: Callable[[str], list[str]]
    image_path: Path | None = None

    def digest(self) -> str:
        """Returns the SHA-256 of model, prompt and image file.

        Raises:
            UserError: The image cannot be read.
        """
        image = None
        if self.image_path is not None:
            image = hashlib.sha256(read_bytes(self.image_path, limit=TABLE_LIMIT)).hexdigest()
        return hashlib.sha256(json.dumps([self.model, self.prompt, image]).encode()).hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """Returns the conversation that the question opens."""
        if self.image_path is None:
            return [{"role": "user", "content": self.prompt}]
        picture = {"type": "image_url", "image_url": {"url": _data_uri(self.image_path)}}
        return [{"role": "user", "content": [picture, {"type": "text", "text": self.prompt}]}]


def category_question(model: str, category: str, class_name: str, count: int) -> Question:
    """Returns the question for `count` sentences on a category, which prompts call `class_name`.

    Reference: KAnoCLIP, Sec. 2.2.1.
    """
    prompt = CATEGORY_PROMPT.format(class_name=class_name, count=count)
    return Question(category, model, prompt, partial(parse_list, count=count))


def image_question(model: str, key: str, class_name: str, image_path: Path) -> Question:
    """Returns the question for a sentence on one image, `key` being its path in its dataset.

    Reference: KAnoCLIP, Sec. 2.2.1.
    """
    return Question(key, model, IMAGE_PROMPT.format(class_name=class_name), parse_sentence, image_path)


def parse_list(answer: str, count: int) -> list[str]:
    """Returns the sentences of a numbered list; what stands before it and after a blank line is not read.

    Raises:
        ValueError: There are not `count` of them, numbered from 1, all different, none empty or too long.
    """
    items: list[str] = []
    open_item = False
    for line in answer.splitlines():
        if match := re.match(r"[\s*-]*(\d+)\s*[.):]\**(?:\s+|$)(.*)", line):
            if int(match[1]) != len(items) + 1:
                raise ValueError(f"item {len(items) + 1} of the list is numbered {match[1]}")
            items.append(match[2])
            open_item = True
        elif not line.strip():
            open_item = False
        elif open_item:
            items[-1] += " " + line
    if len(items) != count:
        raise ValueError(f"the numbered list has {len(items)} sentences where {count} were asked for")
    sentences = [sentence for item in items for sentence in parse_sentence(item)]
    if len({sentence.lower() for sentence in sentences}) < count:
        raise ValueError("two sentences of the list are the same")
    return sentences


def parse_sentence(answer: str) -> list[str]:
    """Returns the answer's text as the only sentence, without line breaks and the marks of a text format.

    Raises:
        ValueError: It is empty, holds what cannot be printed or has more than `MAX_TOKENS` tokens.
    """
    sentence = " ".join(answer.replace("**", "").split()).strip('"“”* ')
    if not any(letter.isalpha() for letter in sentence):
        raise ValueError("the answer is empty")
    if not sentence.isprintable():
        raise ValueError("the answer holds characters that cannot be printed")
    if (tokens := count_tokens(sentence)) > MAX_TOKENS:
        raise ValueError(f"a sentence has {tokens} tokens, and {MAX_TOKENS} is the most")
    return [sentence]


@dataclass(frozen=True)
class _Answer:
    """What is read of a line of the cache."""

    prompt: str
    answer: str


class AnswerCache:
    """The usable answers so far, in a file of JSON lines that only grows.

    A line that is not whole, as when the process was killed while it wrote, is no answer.

    Args:
        path: The file, there or not.

    Raises:
        UserError: It is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, str] = {}
        content = read_bytes(path, limit=TABLE_LIMIT) if path.exists() else b""
        self._whole = not content or content.endswith(b"\n")
        for line in content.split(b"\n"):
            with suppress(UserError):
                entry = parse_json(line, _Answer, str(path))
                self._answers[entry.prompt] = entry.answer

    def get(self, question: Question) -> list[str] | None:
        """Returns the sentences of an earlier answer; `None` if there is none that can be used."""
        try:
            return question.parse(self._answers[question.digest()])
        except (KeyError, ValueError):
            return None

    def add(self, question: Question, answer: str) -> None:
        """Keeps an answer; it is on the disk when this returns.

        Raises:
            UserError: The file cannot be written.
        """
        entry = {"prompt": question.digest(), "about": question.about, "model": question.model, "answer": answer}
        line = json.dumps(entry) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write((line if self._whole else "\n" + line).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}). Free some space.") from error
        self._whole = True
        self._answers[entry["prompt"]] = answer


def ask(server: ChatServer, question: Question) -> str:
    """Returns a usable answer.

    What may pass (no answer in time, a status of 429 or of 500 and above, a broken connection) is tried again after the
    wait that the server asks for, or 1, 2, 4 … s; an answer that cannot be used is sent back with what is wrong.

    Raises:
        UserError: There was none in `ATTEMPTS` attempts, the server refuses, or wants a wait beyond `LONGEST_WAIT`.
    """
    opening = question.messages()
    messages, reason = opening, ""
    for attempt in range(ATTEMPTS):
        answer = ""
        try:
            answer = server.complete(question.model, messages)
            question.parse(answer)
            return answer
        except TransientError as failure:
            reason = str(failure)
            if (failure.wait or 0) > LONGEST_WAIT:
                raise UserError(
                    f"{question.about}: {server.endpoint} says {reason} and wants {failure.wait:.0f} s of patience."
                ) from failure
            if attempt < ATTEMPTS - 1:
                sleep(2.0**attempt if failure.wait is None else failure.wait)
        except ValueError as error:
            reason = str(error)
            complaint = {"role": "user", "content": f"This cannot be used: {reason}. Answer the first message again."}
            messages = [*opening, {"role": "assistant", "content": answer}, complaint] if answer else opening
    raise UserError(
        f"{question.about}: {server.endpoint} gave no usable answer in {ATTEMPTS} attempts; the last: {reason}."
    )


def answer_all(
    questions: Sequence[Question], server: ChatServer, cache: AnswerCache
) -> tuple[dict[str, list[str]], int]:
    """Returns the sentences by what they are about, and how many questions the server was asked.

    Questions with the same prompt, as of two categories with one class name, share their answer.

    Raises:
        UserError: A question has no usable answer; earlier answers are in the cache.
    """
    found: dict[str, list[str]] = {}
    asked = 0
    for question in tqdm(questions, desc="asking", unit="question", disable=None):
        sentences = cache.get(question)
        if sentences is None:
            answer = ask(server, question)
            cache.add(question, answer)
            sentences = question.parse(answer)
            asked += 1
        found[question.about] = sentences
    return found, asked


def _data_uri(path: Path) -> str:
    image = Image.fromarray(read_image(path))
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
