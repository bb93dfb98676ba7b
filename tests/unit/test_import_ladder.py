"""The import ladder of the package: who may import whom, and who owns which library.

A folder or module imports its own folder and lower rungs. Sources are read with `ast`, so imports
inside functions and below `TYPE_CHECKING` count like any other.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import router

DOORS = frozenset({"wsgi", "server", "cli", "demo", "budget_service"})

# From the bottom up. Units on one rung never import one another; only the doors may, because a
# command of `cli` starts the others.
RUNGS: tuple[frozenset[str], ...] = (
    frozenset({"call", "errors", "clock", "breaker"}),
    frozenset({"telemetry", "net", "providers"}),
    frozenset({"config"}),
    frozenset({"auth", "pricing", "spool", "redis"}),
    frozenset({"upstream", "records"}),
    frozenset({"routing", "limits", "exports"}),
    frozenset({"store"}),
    frozenset({"agent"}),
    frozenset({"readiness"}),
    frozenset({"services"}),
    frozenset({"api"}),
    frozenset({"app"}),
    DOORS,
)
HEIGHT = {unit: height for height, rung in enumerate(RUNGS) for unit in rung}

FLASK_OWNERS = frozenset({"router.api", "router.app"} | {f"router.{door}" for door in DOORS})
SQL_OWNERS = frozenset({"router.store", "router.exports.reconciliation"})
OWNERS: Mapping[str, frozenset[str]] = {
    "flask": FLASK_OWNERS,
    "werkzeug": FLASK_OWNERS,
    "redis": frozenset({"router.redis"}),
    "kafka": frozenset({"router.agent"}),
    "requests": frozenset({"router.upstream"}),
    # The budget service is asked by limits, which must not know how backends are called.
    "urllib3": frozenset({"router.limits.remote.budget_session"}),
    "tiktoken": frozenset({"router.pricing.token_counter"}),
    # It brings pydantic and a third of a second.
    "genai_prices": frozenset({"router.cli.prices"}),
    "sqlite3": SQL_OWNERS,
    "sqlalchemy": SQL_OWNERS,
}
ENVIRONMENT_OWNER = "router.config.settings"
ENVIRONMENT_NAMES = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})


@dataclass(frozen=True)
class Module:
    """One source file; `name` is dotted, a package's is the folder's."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def unit(self) -> str:
        return unit_of(self.name)


@dataclass(frozen=True)
class Import:
    target: str
    line: int


def unit_of(dotted: str) -> str:
    """The folder or module directly below `router`; empty for `router` itself."""
    return [*dotted.split("."), ""][1]


def read_package() -> dict[str, Module]:
    root = Path(router.__file__).parent
    modules = {}
    for path in sorted(root.rglob("*.py")):
        is_package = path.name == "__init__.py"
        inner = path.parent if is_package else path.with_suffix("")
        name = ".".join(("router", *inner.relative_to(root).parts))
        modules[name] = Module(name, ast.parse(path.read_text("utf-8"), str(path)), is_package)
    return modules


def imports_of(module: Module) -> Iterator[Import]:
    """Every imported name, fully dotted, wherever in the file the import stands."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(module, node)
            yield from (Import(f"{origin}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func) in {"import_module", "__import__"}:
            yield from (
                Import(argument.value, node.lineno)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )


def _origin(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    climbed = node.level - module.is_package
    parts = module.name.split(".")
    base = parts[: len(parts) - climbed]
    return ".".join([*base, node.module] if node.module else base)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def ladder_violations(module: Module) -> list[str]:
    if module.name == "router":
        return []
    if module.unit not in HEIGHT:
        return [f"{module.name}: `{module.unit}` has no rung on the ladder"]
    return [
        f"{module.name}:{line} imports {target}"
        for target, line in ((found.target, found.line) for found in imports_of(module))
        if target.split(".")[0] == "router" and not _may_import(module.unit, unit_of(target))
    ]


def _may_import(importer: str, imported: str) -> bool:
    if importer == imported or imported == "":
        return True
    if {importer, imported} <= DOORS:
        return True
    return imported in HEIGHT and HEIGHT[imported] < HEIGHT[importer]


def ownership_violations(module: Module) -> list[str]:
    return [
        f"{module.name}:{found.line} imports {found.target}"
        for found in imports_of(module)
        if not _owns(module.name, OWNERS.get(found.target.split(".")[0]))
    ]


def _owns(name: str, owners: frozenset[str] | None) -> bool:
    return owners is None or any(name == owner or name.startswith(f"{owner}.") for owner in owners)


def environment_violations(module: Module) -> list[str]:
    if module.name == ENVIRONMENT_OWNER:
        return []
    names = {
        alias.asname or alias.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    read = [
        (node.attr, node.lineno)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and _name(node.value) in names
    ]
    imported = [
        (found.target.removeprefix("os."), found.line)
        for found in imports_of(module)
        if found.target.startswith("os.")
    ]
    return [
        f"{module.name}:{line} uses os.{name}"
        for name, line in sorted(read + imported, key=lambda found: found[1])
        if name in ENVIRONMENT_NAMES
    ]


def docstring_violations(module: Module) -> list[str]:
    if not module.is_package or (ast.get_docstring(module.tree) and len(module.tree.body) == 1):
        return []
    return [f"{module.name}/__init__.py holds something else than one docstring"]


def cycle_violations(modules: Mapping[str, Module]) -> list[str]:
    graph = {
        name: {_nearest(found.target, modules) for found in imports_of(module)} - {"", name}
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as cycle:
        return [" -> ".join(cycle.args[1])]
    return []


def _nearest(target: str, modules: Mapping[str, Module]) -> str:
    """The module that `target` lives in; empty when it is none of ours."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target


PACKAGE = read_package()
EACH_MODULE = pytest.mark.parametrize("module", PACKAGE.values(), ids=PACKAGE)


def test_the_package_was_read() -> None:
    """The rules below look at real modules, nested ones included."""
    assert {"router", "router.errors", "router.config.settings"} <= set(PACKAGE)


@EACH_MODULE
def test_imports_go_down_the_ladder(module: Module) -> None:
    """A module imports its own folder and lower rungs only."""
    assert ladder_violations(module) == []


@EACH_MODULE
def test_libraries_stay_with_their_owners(module: Module) -> None:
    """Flask, redis, kafka, requests and SQL are imported only where the design puts them."""
    assert ownership_violations(module) == []


@EACH_MODULE
def test_only_the_settings_read_the_environment(module: Module) -> None:
    """The process environment is touched in one module."""
    assert environment_violations(module) == []


@EACH_MODULE
def test_init_files_hold_a_docstring_only(module: Module) -> None:
    """A package file says what the folder owns and re-exports nothing."""
    assert docstring_violations(module) == []


def test_there_is_no_import_cycle() -> None:
    """No chain of imports, however late they run, leads back to where it began."""
    assert cycle_violations(PACKAGE) == []


def parsed(name: str, source: str, *, is_package: bool = False) -> Module:
    return Module(name, ast.parse(source), is_package)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("router.errors", "import router.call"),
        ("router.clock", "from router import errors"),
        ("router.telemetry.logs", "from router.config.settings import Settings"),
        ("router.config.loader", "def late():\n    from router.routing import models"),
        ("router.auth.keys", "from router.limits import admission"),
        ("router.routing.engine", "if TYPE_CHECKING:\n    from router.limits import admission"),
        ("router.upstream.session", "from ..records.recorder import Recorder"),
        ("router.routing.engine", "from .. import services"),
        ("router.services", "import importlib\nimportlib.import_module('router.api.public')"),
        ("router.agent.prober", "import router.api.scope"),
        ("router.api.public", "from router.app import create_app"),
        ("router.app", "from router.server import worker"),
        ("router.api.public", "from router.leftovers import anything"),
        ("router.leftovers", "import json"),
    ],
)
def test_a_step_up_or_sideways_is_found(name: str, source: str) -> None:
    """Each forbidden direction and each way of writing an import is reported."""
    assert len(ladder_violations(parsed(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("router.api.public", "from router.api.scope import Scope\nfrom . import replies"),
        ("router.api.openai", "from router.services import Services\nimport router.errors"),
        ("router.cli.main", "from router.server import worker\nfrom router.demo import run"),
        ("router.routing.engine", "import flask_like, router\nfrom router.auth import keys"),
    ],
)
def test_a_step_down_or_within_is_allowed(name: str, source: str) -> None:
    """The checker is silent where the ladder is kept."""
    assert ladder_violations(parsed(name, source)) == []


def test_a_package_file_resolves_relative_imports_from_itself() -> None:
    """`from . import x` in a package names the package's own module."""
    package = parsed("router.auth", "from . import keys\nfrom .. import limits", is_package=True)
    assert [found.target for found in imports_of(package)] == ["router.auth.keys", "router.limits"]


@pytest.mark.parametrize(
    ("owner", "intruder", "source"),
    [
        ("router.api.public", "router.services", "from flask import request"),
        ("router.demo", "router.routing.engine", "import flask.json"),
        ("router.redis.pool", "router.api.pipeline", "from redis.exceptions import RedisError"),
        ("router.redis.pool", "router.agent.mirror", "import redis"),
        ("router.agent.kafka", "router.spool.writer", "from kafka import KafkaProducer"),
        ("router.upstream.session", "router.routing.health", "import requests"),
        (
            "router.limits.remote.budget_session",
            "router.limits.remote.budget_client",
            "import urllib3",
        ),
        ("router.store.engine", "router.records.recorder", "import sqlite3"),
    ],
)
def test_a_library_away_from_home_is_found(owner: str, intruder: str, source: str) -> None:
    """The owner may import the library, another module may not."""
    assert ownership_violations(parsed(owner, source)) == []
    assert len(ownership_violations(parsed(intruder, source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['A'] = 'b'",
        "import os as system\nsystem.getenv('A')",
        "from os import environ as settings",
        "def late():\n    from os import getenv",
    ],
)
def test_a_second_reader_of_the_environment_is_found(source: str) -> None:
    """Only the settings module may do this."""
    assert len(environment_violations(parsed("router.demo", source))) == 1
    assert environment_violations(parsed("router.config.settings", source)) == []


def test_other_uses_of_os_are_no_environment() -> None:
    """Files and processes are not the environment."""
    source = "import os\nos.getpid()\nos.path.join('a')\nscope.environ['x']"
    assert environment_violations(parsed("router.server", source)) == []


@pytest.mark.parametrize("source", ["", "'''Words.'''\nfrom .keys import Key", "import os"])
def test_a_package_file_with_code_or_without_words_is_found(source: str) -> None:
    """Neither a re-export nor a missing docstring passes."""
    assert len(docstring_violations(parsed("router.auth", source, is_package=True))) == 1


def test_a_cycle_through_a_late_import_is_found() -> None:
    """Two modules of one folder that need each other are one module or three."""
    modules = {
        "router.auth.a": parsed("router.auth.a", "from router.auth.b import B"),
        "router.auth.b": parsed("router.auth.b", "def late():\n    from . import a"),
    }
    [cycle] = cycle_violations(modules)
    assert cycle.count("router.auth.a") + cycle.count("router.auth.b") == 3
