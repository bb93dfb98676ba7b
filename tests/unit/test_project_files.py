"""What the files around the code promise one another: bounds, locks, package data, targets."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import router

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(router.__file__).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DATA_SUFFIXES = (".lua", ".yaml", ".json")


@cache
def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def declared(section: str, option: str) -> list[Requirement]:
    lines = setup()[section][option].splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def dependencies(python: str | None = None) -> list[Requirement]:
    """All of them, or those that apply to one Python."""
    found = declared("options", "install_requires")
    return found if python is None else applying(found, python)


def extra(name: str, python: str) -> list[Requirement]:
    """What an extra adds for one Python."""
    return applying(declared("options.extras_require", name), python)


def applying(found: list[Requirement], python: str) -> list[Requirement]:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return [one for one in found if one.marker is None or one.marker.evaluate(environment)]


def pins(file: str, python: str) -> dict[str, str]:
    """Distribution to version, for one Python; a second pin of the same name is a mistake."""
    found: dict[str, str] = {}
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    for line in (ROOT / "constraints" / file).read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            [pin] = requirement.specifier
            assert pin.operator == "==", f"{line} is no pin"
            found[name] = pin.version
    return found


def lower_bound(requirement: Requirement) -> str:
    [version] = [part.version for part in requirement.specifier if part.operator == ">="]
    return version


@pytest.mark.parametrize(
    "path",
    [
        "README.md", "LICENSE", "CHANGELOG.md", "setup.cfg", "pyproject.toml", "tox.ini",
        "Makefile", ".ci/run", "gunicorn.conf.py", "docker-compose.yml", "contracts",
        "deploy/Dockerfile", "deploy/nginx.conf", "deploy/router.service",
        "deploy/router-agent.service",
    ],
)  # fmt: skip
def test_the_top_level_is_complete(path: str) -> None:
    """A clone holds everything that the README and an operator start from."""
    assert (ROOT / path).exists()


def test_the_licence_is_apache_2() -> None:
    """The text and the metadata name the same licence."""
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert setup()["metadata"]["license"] == "Apache-2.0"


def test_the_changelog_opens_with_what_is_unreleased() -> None:
    """A change that a user notices has a place to be told."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_pyproject_names_the_build_system_and_nothing_else() -> None:
    """Three lines; every tool is configured elsewhere."""
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    assert lines[0] == "[build-system]"
    assert [line.partition(" = ")[0] for line in lines[1:]] == ["requires", "build-backend"]


def test_the_installed_version_is_the_one_of_setup_cfg() -> None:
    """The router reads its version from the metadata; there is no second copy."""
    try:
        version = importlib.metadata.version("api-router")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("THE PACKAGE IS NOT INSTALLED: tox runs this test against the built wheel")
    assert version == setup()["metadata"]["version"]


def test_the_command_exists() -> None:
    """`routerctl` starts a callable that is there."""
    [script] = setup()["options.entry_points"]["console_scripts"].strip().splitlines()
    point = importlib.metadata.EntryPoint(*script.split(" = "), group="console_scripts")
    assert point.name == "routerctl"
    assert callable(point.load())


def test_gunicorn_comes_without_its_fast_extra() -> None:
    """That extra's parser pin makes pip fall back to an old gunicorn without a word."""
    [gunicorn] = [found for found in dependencies() if found.name == "gunicorn"]
    assert gunicorn.extras == {"gevent"}


@pytest.mark.parametrize("python", PYTHONS)
def test_lowest_pins_every_dependency_at_its_bound(python: str) -> None:
    """What the `lowest` environments run with is what setup.cfg allows at least."""
    bounds = {
        canonicalize_name(requirement.name): lower_bound(requirement)
        for requirement in dependencies(python) + extra("test", python)
    }
    lowest = pins("lowest.txt", python)
    assert {name: lowest.get(name) for name in bounds} == bounds


@pytest.mark.parametrize("python", PYTHONS)
def test_lowest_leaves_nothing_else_to_chance(python: str) -> None:
    """What the dependencies bring along is the same in both sets."""
    locked = pins("locked.txt", python)
    direct = {
        canonicalize_name(requirement.name)
        for requirement in dependencies() + declared("options.extras_require", "test")
    }
    brought = {name: pin for name, pin in pins("lowest.txt", python).items() if name not in direct}
    assert brought
    assert {name: locked.get(name) for name in brought} == brought


@pytest.mark.parametrize("python", PYTHONS)
def test_locked_satisfies_the_bounds(python: str) -> None:
    """Every requirement, tools included, has a pin that it accepts."""
    locked = pins("locked.txt", python)
    requirements = [
        *dependencies(python),
        *extra("test", python),
        *extra("dev", python),
    ]
    refused = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0"))
    ]
    assert refused == []


def test_every_imported_distribution_is_declared() -> None:
    """What the code imports it asks for itself, not through somebody else's dependency."""
    providers = importlib.metadata.packages_distributions()
    extras = [part for name in ("postgres", "parquet")
              for part in declared("options.extras_require", name)]  # fmt: skip
    names = {canonicalize_name(requirement.name) for requirement in [*dependencies(), *extras]}
    undeclared = {
        module
        for module in third_party_imports()
        if names.isdisjoint(canonicalize_name(name) for name in providers.get(module, [module]))
    }
    assert undeclared == set()


def third_party_imports() -> Iterator[str]:
    for path in INSTALLED.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            tops = {module.partition(".")[0] for module in modules}
            yield from tops - sys.stdlib_module_names - {"router"}


def test_package_data_is_listed() -> None:
    """Scripts, schemas, demo documents and the typing marker are part of the package."""
    patterns = setup()["options.package_data"]["router"].split()
    assert patterns == ["py.typed", *(f"**/*{suffix}" for suffix in DATA_SUFFIXES)]


def test_package_data_is_installed() -> None:
    """Every data file of the source tree is where the installed package looks for it."""
    source = {
        path.relative_to(ROOT / "router")
        for path in (ROOT / "router").rglob("*")
        if path.suffix in DATA_SUFFIXES or path.name == "py.typed"
    }
    assert source
    assert {path for path in source if not (INSTALLED / path).is_file()} == set()


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("kind", ["fakes", "servers"])
def test_tox_runs_each_kind_on_each_python(python: str, kind: str) -> None:
    """No interpreter is left out of the default run."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    listed = {name for line in tox["tox"]["env_list"].split() for name in expanded(line)}
    assert f"py{python.replace('.', '')}-{kind}-locked" in listed
    assert {"lint", "contracts"} <= listed
    assert "bench" not in listed
    assert f"Programming Language :: Python :: {python}" in setup()["metadata"]["classifiers"]


def expanded(pattern: str) -> list[str]:
    """The environments that a name with `{a,b}` groups stands for."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if group is None:
        return [pattern]
    before, after = pattern[: group.start()], pattern[group.end() :]
    return [name for choice in group[1].split(",") for name in expanded(before + choice + after)]


@pytest.mark.parametrize("target", ["run", "test", "dev-up", "dev-down", "bench", "contracts"])
def test_make_has_the_promised_targets(target: str) -> None:
    """Each is there and explained by `make help`."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{target}:.* ## \S", makefile, re.MULTILINE)


def test_ci_runs_make_test() -> None:
    """The build server runs what a developer runs, from an executable file."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^[^#]*\bmake test\b", script.read_text("utf-8"), re.MULTILINE)


def test_compose_starts_the_router_and_its_engines() -> None:
    """Development services exist, listen on loopback only and mount files that are there."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    services = compose["services"]
    assert set(services) == {"router", "nginx", "redis", "kafka", "postgres", "budget-service"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    build = services["router"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    mounts = [mount.split(":")[0] for service in services.values()
              for mount in service.get("volumes", [])]  # fmt: skip
    assert [
        mount
        for mount in mounts
        if mount not in compose["volumes"] and not (ROOT / mount).is_file()
    ] == []
