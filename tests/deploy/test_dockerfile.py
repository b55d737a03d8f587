"""The commands of the Dockerfile, run with other paths: an environment, a watcher, a page."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support import REPOSITORY, free_port
from tests.support.bundles import write_bundle
from tests.support.deploy import run, stages, steps_of
from tests.support.uploads import encoded, picture

pytestmark = pytest.mark.slow

TOKEN = "Zm9yIHRlc3RzLCBhbmQgbm93aGVyZSBlbHNl"
OF_THE_USER = ("groupadd", "useradd", "install")  # need root, and a machine of their own


@dataclass
class Container:
    """A folder in place of a container's file system. Instructions on its paths apply to the folder.

    Attributes:
        root: The folder.
        environment: Environment variables of its commands.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"HOME": os.environ.get("HOME", "/")})

    def place(self, path: str) -> str:
        """Returns the location of a path of the container."""
        return str(self.root) + path

    def words(self, words: list[str]) -> list[str]:
        """Returns a command with absolute paths in the folder."""
        return [self.place(word) if word.startswith("/") else word for word in words]

    def build(self, stage: str) -> None:
        """Executes the instructions of a stage."""
        values: dict[str, str] = {}
        folder = self.root
        for kind, value in steps_of(stage):
            if kind == "ARG":
                name, _, default = value.partition("=")
                values[name] = default
            elif kind == "WORKDIR":
                folder = Path(self.place(value))
                folder.mkdir(parents=True, exist_ok=True)
            elif kind == "COPY":
                source, target = shlex.split(value)
                copy(REPOSITORY / source, folder / target if target != "./" else folder / source)
            elif kind == "RUN":
                for command in value.split("&&"):
                    for name, default in values.items():
                        command = command.replace(f"${{{name}}}", default)
                    words = self.words(shlex.split(command))
                    run(sys.executable if words[0] == "python" else words[0], *words[1:], cwd=folder)

    def python(self) -> str:
        """Returns the Python that `PATH` of the image finds."""
        folders = [value for kind, value in steps_of("page") if kind == "ENV"]
        assert any('PATH="/opt/afclip/bin:${PATH}"' in value for value in folders)
        return self.place("/opt/afclip/bin/python")

    def command(self, words: list[str]) -> list[str]:
        """Returns a command of the image, adapted to this machine."""
        assert words[0] == "python"
        return [self.python(), *self.words(words[1:])]

    def health(self, stage: str, **replaced: str) -> int:
        """Returns the exit code of the health check of an image."""
        check = stages()[stage].value("HEALTHCHECK")
        words = json.loads(check.partition(" CMD ")[2])
        words = [replace(word, replaced) for word in words]
        return subprocess.run(self.command(words), env=self.environment, cwd=self.root, timeout=60).returncode

    @contextmanager
    def running(self, stage: str, *flags: str) -> Iterator["subprocess.Popen[str]"]:
        """Runs the command of an image with additional flags."""
        words = [*json.loads(stages()["base"].value("ENTRYPOINT")), *json.loads(stages()[stage].value("CMD")), *flags]
        with subprocess.Popen(
            self.command(words), env=self.environment, cwd=self.place("/out"), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()


def replace(word: str, replaced: dict[str, str]) -> str:
    for old, new in replaced.items():
        word = word.replace(old, new)
    return word


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def until(holds: "object", seconds: float = 60) -> None:
    """Waits until a condition holds; fails the test after a number of seconds."""
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """The result of the stage `build-page`, with a bundle, a folder of images and a token."""
    container = Container(tmp_path_factory.mktemp("container"))
    (container.root / "opt").mkdir()
    container.build("build-page")
    for name in ("in", "out", "run/secrets"):
        (container.root / name).mkdir(parents=True)
    write_bundle(container.root / "bundle")
    token = container.root / "run/secrets/token"
    token.write_text(TOKEN)
    token.chmod(0o400)
    return container


def test_only_what_makes_the_user_is_not_run_here() -> None:
    for name in ("base", "runtime", "page"):
        for kind, value in stages()[name].steps:
            if kind == "RUN":
                assert {shlex.split(part)[0] for part in value.split("&&")} <= set(OF_THE_USER)


def test_the_watcher_judges_and_tells_its_health(container: Container) -> None:
    assert container.health("runtime") != 0
    with container.running("runtime") as watcher:
        until(lambda: container.health("runtime") == 0 or watcher.poll() is not None)
        assert watcher.poll() is None, watcher.stdout and watcher.stdout.read()
        (container.root / "in/a.png").write_bytes(encoded(picture()))
        until(lambda: "a.png" in (container.root / "out/inspections.csv").read_text())
        watcher.send_signal(signal.SIGTERM)  # as `docker stop` does
        assert watcher.wait(30) == 0


def test_the_page_asks_for_its_token_and_tells_its_health(container: Container) -> None:
    port = free_port()
    here = {":8000": f":{port}"}
    assert container.health("page", **here) != 0
    with container.running("page", "--port", port) as page:
        until(lambda: container.health("page", **here) == 0 or page.poll() is not None)
        assert page.poll() is None, page.stdout and page.stdout.read()
        url = f"http://127.0.0.1:{port}/api/inspect"
        assert httpx.post(url, content=encoded(picture())).status_code == 401
        answer = httpx.post(url, content=encoded(picture()), headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200
        page.send_signal(signal.SIGTERM)
        assert page.wait(30) == 0
