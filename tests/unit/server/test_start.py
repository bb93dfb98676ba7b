"""What the master refuses to start with."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.server.hooks import on_starting


def test_a_vocabulary_that_cannot_be_used_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Before a worker is started, so that none dies of it again and again."""
    monkeypatch.setenv("ROUTER_DATA_DIR", str(tmp_path))
    server: Any = SimpleNamespace(log=logging.getLogger("test"), manage_workers=lambda: None)
    on_starting(server)
    assert server.router_slots == {}
    monkeypatch.setenv("ROUTER_TOKEN_VOCABULARY", str(tmp_path / "absent.tiktoken"))
    with pytest.raises(SystemExit) as ended:
        on_starting(server)
    assert ended.value.code == 1
    [line] = caplog.messages
    assert line.startswith("ROUTER_TOKEN_VOCABULARY: ")
    assert "absent.tiktoken: No such file" in line
