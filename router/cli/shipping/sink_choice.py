"""Whether a shell's settings ship to the sinks that the records of a data directory wait for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from router.config.config_errors import ConfigurationError
from router.config.settings import Settings

if TYPE_CHECKING:
    from router.agent.sink_set import SinkSet

_ADVICE: Final = (
    "use the environment of the service; --accept-sinks gives up what waits for the other sinks"
)
_logger = logging.getLogger("router.agent")


def configured_sinks(settings: Settings) -> SinkSet:
    """Where these settings ship to."""
    from router.agent.sink_set import SinkSet, Topics, describe_store

    kafka = None
    if settings.kafka_brokers:
        kafka = Topics(
            settings.kafka_brokers, settings.kafka_usage_topic, settings.kafka_audit_topic
        )
    return SinkSet(describe_store(settings.store_url, settings.data_dir), kafka)


def check_sinks(settings: Settings) -> SinkSet:
    """The configured sinks; raises :class:`ConfigurationError` if a sink would lose records.

    Valid only while no agent runs.
    """
    wanted = configured_sinks(settings)
    problems = _problems(settings, wanted)
    if problems:
        raise ConfigurationError([*problems, _ADVICE])
    return wanted


def note_sinks(settings: Settings, *, check: bool) -> None:
    """Remember the configured sinks as those of the data directory, and log what they are.

    Without ``check`` whatever is configured is right; it is logged if it changes anything.
    """
    from router.agent.sink_set import load_sinks, save_sinks

    known = load_sinks(settings.data_dir)
    wanted = check_sinks(settings) if check else configured_sinks(settings)
    _logger.info("sinks", extra={"ships_to": str(wanted)})
    if wanted == known:
        return
    if known is not None:
        _logger.warning("sinks changed", extra={"before": str(known), "now": str(wanted)})
    try:
        save_sinks(settings.data_dir, wanted)
    except OSError as error:
        # A full disk must not keep an agent from making room on it.
        _logger.error("sinks not noted", extra={"reason": str(error)})


def _problems(settings: Settings, wanted: SinkSet) -> list[str]:
    from router.agent.sink_set import load_sinks, missing_sinks
    from router.spool.checkpoints import (
        Checkpoints,
        checkpoint_path,
        sinks_with_checkpoints,
    )
    from router.spool.reader import SpoolReader

    reader = SpoolReader(settings.spool_dir, observe=True)

    def waits(sink: str) -> bool:
        # A worker that lives may write at any moment.
        saved = Checkpoints(checkpoint_path(settings.data_dir, sink)).load()
        return reader.backlog_bytes(saved) > 0 or any(info.alive for info in reader.writers())

    known = load_sinks(settings.data_dir)
    return missing_sinks(known, wanted, sinks_with_checkpoints(settings.data_dir), waits)
