"""The pepper: the server's secret with which keys are hashed. Without it, no key is valid."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from router.config.config_errors import PepperError
from router.config.settings import Settings

FILE_NAME: Final = "pepper"
MIN_BYTES: Final = 32
_RANDOM_BYTES: Final = 32
_MAX_BYTES: Final = 4096
_FINGERPRINT_DIGITS: Final = 16


def load_pepper(settings: Settings, *, create: bool) -> bytes:
    """The pepper from ``ROUTER_KEY_PEPPER``, else from the file ``pepper`` in the data directory.

    With ``create`` a missing file is created. The file's contents also work in the variable.
    Raises :class:`PepperError`.
    """
    if settings.key_pepper is not None:
        return settings.key_pepper.encode()
    path = settings.data_dir / FILE_NAME
    try:
        if create and not path.exists():
            _create(path)
        return _read(path)
    except FileNotFoundError:
        raise PepperError(
            [f"no pepper: {path} does not exist and ROUTER_KEY_PEPPER is not set"]
        ) from None
    except OSError as error:
        raise PepperError([f"the pepper {path}: {error.strerror or error}"]) from None


def pepper_fingerprint(pepper: bytes) -> str:
    """Identifies a pepper without revealing it: 16 hex digits."""
    return hmac.digest(pepper, b"pepper-fingerprint", "sha256").hex()[:_FINGERPRINT_DIGITS]


def has_pepper(settings: Settings) -> bool:
    """Whether there is a pepper, even one that :func:`load_pepper` refuses."""
    return settings.key_pepper is not None or (settings.data_dir / FILE_NAME).exists()


def _create(path: Path) -> None:
    """Create the whole file or none: a link appears at once, a written file does not.

    If two processes do this at the same time, one wins and both read what it wrote.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_RANDOM_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        raw = file.read(_MAX_BYTES).strip()
    if not stat.S_ISREG(status.st_mode):
        raise PepperError([f"the pepper {path}: not a file"])
    if status.st_mode & 0o077:
        raise PepperError([f"the pepper {path}: others may access it; run 'chmod 600 {path}'"])
    if len(raw) < MIN_BYTES:
        raise PepperError([f"the pepper {path}: has fewer than {MIN_BYTES} bytes"])
    return raw
