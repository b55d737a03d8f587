"""Files for deployment: linters pass, services are hardened, and the paths that they name exist."""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deploy import (
    DEPLOY,
    REPOSITORY,
    RUNTIME,
    normal,
    pinned,
    run,
    runtime_project,
    stages,
    steps_of,
    tool,
)

UNITS = sorted(DEPLOY.glob("*.service"))
IMAGES = ("runtime", "page")


def test_the_dockerfile_passes_its_linter() -> None:
    run(tool("hadolint"), "--failure-threshold", "style", DEPLOY / "Dockerfile")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_nobody_and_tells_its_health(name: str) -> None:
    stage = stages()[name]
    user = [value for kind, value in steps_of(name) if kind == "USER"][-1]
    assert user == "10001:10001"
    assert "--interval" in stage.value("HEALTHCHECK")
    assert json.loads(stage.value("CMD"))
    copied = [value for kind, value in stage.steps if kind == "COPY"]
    assert all(value.startswith("--from=build") for value in copied), "what builds stays in the stage that builds"
    assert not any("pip" in value or "apt" in value for kind, value in stage.steps if kind == "RUN")
    assert {value for kind, value in steps_of(name) if kind == "LABEL" and "org.opencontainers.image.licenses" in value}


def test_what_images_are_built_from_is_pinned_and_nothing_else_is_sent() -> None:
    extras = runtime_project()
    assert {"onnx", "openvino", "tiff", "dicom", "serve"} <= extras.keys()
    required = {normal(one.name) for lines in extras.values() for one in lines}
    assert required <= pinned()
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert next(line for line in sent if line.startswith(("*", "!"))) == "*"
    kept = {line[1:] for line in sent if line.startswith("!")}
    copied = {value.split()[0] for kind, value in stages()["build"].steps if kind == "COPY"}
    assert copied == kept
    assert all((REPOSITORY / name).exists() for name in kept)


def compose(**environment: str) -> dict[str, dict[str, object]]:
    command = [tool("docker-compose"), "-f", str(DEPLOY / "compose.yaml"), "--profile", "https"]
    command += ["config", "--format", "json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
    assert said.returncode == 0, said.stderr
    assert "warn" not in said.stderr.lower()
    services: dict[str, dict[str, object]] = json.loads(said.stdout)["services"]
    return services


def test_services_are_hardened() -> None:
    services = compose()
    assert set(services) == {"watch", "page", "https"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert int(str(service["mem_limit"])) <= 2 * 2**30, name
        assert not service.get("privileged"), name
        assert name == "https" or "cap_add" not in service


def test_services_run_what_the_images_do() -> None:
    services = compose(AFCLIP_HOST="line-3.example")
    command = json.loads(stages()["page"].value("CMD"))
    given = services["page"]["command"]
    assert isinstance(given, list)
    assert given[: len(command)] == command
    assert given[given.index("--allow_host") + 1] == "line-3.example"
    assert ipaddress.ip_address("172.30.24.2") in ipaddress.ip_network(given[given.index("--proxy") + 1])
    assert services["watch"]["command"] is None
    for name, target in (("watch", "runtime"), ("page", "page")):
        build = services[name]["build"]
        assert isinstance(build, dict)
        assert build["target"] == target
        assert (Path(build["context"]) / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
        volumes = services[name]["volumes"]
        assert isinstance(volumes, list)
        by_target = {volume["target"]: volume for volume in volumes}
        assert by_target["/bundle"]["read_only"] is True
        words = json.loads(stages()[target].value("CMD"))
        assert {word for word in words if word in ("/bundle", "/in", "/out")} == set(by_target)
    published = services["page"]["ports"]
    assert isinstance(published, list)
    assert [port["host_ip"] for port in published] == ["127.0.0.1"]


def test_the_proxy_takes_its_file(tmp_path: Path) -> None:
    caddy = tool("caddy")
    home = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run(caddy, "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile", env=home)
    said = run(caddy, "adapt", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile", env=home)
    assert "request_body" in said
    formatted = subprocess.run([caddy, "fmt", str(DEPLOY / "Caddyfile")], capture_output=True, text=True, env=home)
    assert formatted.stdout == (DEPLOY / "Caddyfile").read_text()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_hold_what_systemd_takes_and_are_hardened(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert "/opt/afclip/bin/python -m afclip_runtime " in text
    copy.write_text(text.replace("/opt/afclip/bin/python", sys.executable))  # it looks for what is started
    said = run(analyze, "verify", "--man=no", copy)
    assert copy.name not in said, said  # what it takes no notice of, it names
    run(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", copy)


def test_there_are_units() -> None:
    assert [unit.stem for unit in UNITS] == ["afclip-page", "afclip-watch"]


def test_the_runtime_has_the_licence_of_the_project() -> None:
    assert (RUNTIME / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
