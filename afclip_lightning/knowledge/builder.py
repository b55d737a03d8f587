"""Asks a language model for the sentences of a knowledge base: the questions, the checks of answers, and a cache.

Each answer is stored at once, by the hash of its prompt, so that a stopped run can resume.
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
LONGEST_WAIT = 120.0  # longest wait that a server may request, in seconds
IMAGE_SIDE = 1024  # longer side of a picture after shrinking, in pixels

# The first sentences are the paper's questions. The rest makes the answers fit CLIP's context. After any change of
# these texts, every cached answer is requested again.
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
        about: Category, or path of the image in its dataset, for messages.
        model: Name of the model on the server.
        prompt: Text of the question.
        parse: Returns the sentences of an answer. It raises `ValueError` with the problem of an unusable answer.
        image_path: Image of the question, or `None`.
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
        """Returns the messages of the request."""
        if self.image_path is None:
            return [{"role": "user", "content": self.prompt}]
        picture = {"type": "image_url", "image_url": {"url": _data_uri(self.image_path)}}
        return [{"role": "user", "content": [picture, {"type": "text", "text": self.prompt}]}]


def category_question(model: str, category: str, class_name: str, count: int) -> Question:
    """Returns the question for `count` sentences on a category, whose name in prompts is `class_name`.

    Reference: KAnoCLIP, Sec. 2.2.1.
    """
    prompt = CATEGORY_PROMPT.format(class_name=class_name, count=count)
    return Question(category, model, prompt, partial(parse_list, count=count))


def image_question(model: str, key: str, class_name: str, image_path: Path) -> Question:
    """Returns the question for a sentence on one image. `key` is its path in its dataset.

    Reference: KAnoCLIP, Sec. 2.2.1.
    """
    return Question(key, model, IMAGE_PROMPT.format(class_name=class_name), parse_sentence, image_path)


def parse_list(answer: str, count: int) -> list[str]:
    """Returns the sentences of a numbered list. Text before the list and after a blank line is ignored.

    Raises:
        ValueError: The list does not have `count` different sentences, numbered from 1, or a sentence is empty or too
            long.
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
    """Returns the answer's text as the only sentence, without line breaks and markup.

    Raises:
        ValueError: The text is empty, holds characters that cannot be printed, or has more than `MAX_TOKENS` tokens.
    """
    sentence = " ".join(answer.replace("**", "").split()).strip('"“”* ')
    if not any(letter.isalpha() for letter in sentence):
        raise ValueError("the answer is empty")
    if not sentence.isprintable():
        raise ValueError("the answer holds characters that cannot be printed")
    if (tokens := count_tokens(sentence)) > MAX_TOKENS:
        raise ValueError(f"a sentence has {tokens} tokens; at most {MAX_TOKENS} are allowed")
    return [sentence]


@dataclass(frozen=True)
class _Answer:
    """The part of a line of the cache that is read."""

    prompt: str
    answer: str


class AnswerCache:
    """The usable answers so far, in an append-only file of JSON lines.

    Incomplete lines of a killed process are ignored.

    Args:
        path: The file. It may not exist yet.

    Raises:
        UserError: The file exists and cannot be read.
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
        """Returns the sentences of an earlier answer; `None` if there is no usable one."""
        try:
            return question.parse(self._answers[question.digest()])
        except (KeyError, ValueError):
            return None

    def add(self, question: Question, answer: str) -> None:
        """Stores an answer durably: it is on disk when this returns.

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

    Transient failures (a timeout, a status of 429 or of 500 and above, a broken connection) are retried after the wait
    that the server requests, or 1, 2, 4 … s. An unusable answer is sent back with its problem.

    Raises:
        UserError: No attempt of `ATTEMPTS` gave a usable answer, the server refuses, or it requests a wait longer than
            `LONGEST_WAIT`.
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
                    f"{question.about}: {server.endpoint} says {reason} and asks to wait {failure.wait:.0f} s."
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
    """Returns the sentences by category or image, and the number of questions that the server was asked.

    Questions with the same prompt share their answer, for example those of two categories with the same class name.

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
