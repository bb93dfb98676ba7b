"""An operator's ``routerctl`` on a data directory and a real Redis, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner, Result

from router.cli.main import cli
from router.config.loader import load_serialized
from router.config.settings import Settings
from router.config.state.state_writer import StateWriter
from router.records.audit_chain import unseal
from router.spool.frames import AUDIT
from router.spool.reader import SpoolReader

Run = Callable[..., Result]


def routerctl(noun: str, data_dir: Path, redis_url: str, document: Mapping[str, Any]) -> Run:
    """Runs commands of ``noun``; the document is applied."""
    loaded = load_serialized(document, demo=False)
    StateWriter(Settings(data_dir=data_dir).state_dir).apply(loaded)

    def call(*arguments: str, **environ: str) -> Result:
        env = {"ROUTER_DATA_DIR": str(data_dir), "RATE_LIMIT_REDIS_ADDR": redis_url, **environ}
        return CliRunner().invoke(cli, [noun, *arguments], env=env, prog_name="routerctl")

    return call


def succeeded(result: Result) -> str:
    """What a successful command printed to standard output."""
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def refused(result: Result, code: int = 1) -> str:
    """What a command that ended in order, but without success, said to standard error."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def events(data_dir: Path) -> list[dict[str, Any]]:
    """The audit events that wait in the spool."""
    reader = SpoolReader(data_dir / "spool", observe=True)
    return [
        orjson.loads(unseal(frame.payload)[0])
        for info in reader.writers()
        for frame in reader.read(reader.first_position(info.writer_id), 1 << 20).frames
        if frame.kind == AUDIT
    ]
