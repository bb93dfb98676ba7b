"""The pepper of commands that sign the audit trail or check it: always the one from before."""

from __future__ import annotations

from typing import Final

from router.config.config_errors import PepperError
from router.config.settings import Settings

OTHER_PEPPER: Final = "this pepper is not the one that the keys and the audit trail were made with"
_NO_SECOND: Final = (
    "no pepper: ROUTER_KEY_PEPPER is not set, and a new one cannot sign the audit trail that is"
    " there"
)


def trail_pepper(settings: Settings, *, create: bool = False) -> bytes:
    """The pepper; raises :class:`PepperError` for one that the stored keys were not made with.

    ``create`` makes one only where neither keys nor an audit trail were made with another.
    """
    from router.config.pepper import has_pepper, load_pepper

    if create and not has_pepper(settings):
        # Any fingerprint but the stored one is wrong, so this only checks whether there is one.
        if is_stored_pepper(settings, b"") is None:
            if _has_trail(settings):
                raise PepperError([_NO_SECOND])
        else:
            create = False
    pepper = load_pepper(settings, create=create)
    if is_stored_pepper(settings, pepper) is False:
        raise PepperError([OTHER_PEPPER])
    return pepper


def is_stored_pepper(settings: Settings, pepper: bytes) -> bool | None:
    """Whether the stored keys were made with this pepper; ``None`` when that is unknown."""
    from router.config.pepper import pepper_fingerprint
    from router.config.state.state_reader import StateReader
    from router.errors import NotConfigured

    reader = StateReader(settings.state_dir)
    try:
        return reader.pepper_matches(pepper_fingerprint(pepper))
    except NotConfigured:
        return None
    finally:
        reader.close()


def _has_trail(settings: Settings) -> bool:
    """Whether something was signed; if the store does not say, whether an agent ever shipped."""
    from router.spool.checkpoints import sinks_with_checkpoints
    from router.store.failures import StoreError
    from router.store.record_store import RecordStore

    try:
        with RecordStore(settings.store_url, read_only=True) as store:
            return bool(store.chain_tips())
    except StoreError:
        return "store" in sinks_with_checkpoints(settings.data_dir)
