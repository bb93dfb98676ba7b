"""W3C Trace Context (https://www.w3.org/TR/trace-context/): read, continued and forwarded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

# Version ff is forbidden; versions above 00 may carry more fields, which are ignored.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_ZERO_TRACE: Final = "0" * 32
_ZERO_SPAN: Final = "0" * 16


@dataclass(slots=True)
class TraceContext:
    """Ids of this call's span: ``trace_id`` 32 and ``span_id`` 16 lowercase hex digits."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    flags: str

    @property
    def traceparent(self) -> str:
        """The header that makes the next hop a child of this span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def open_trace(traceparent: str | None) -> TraceContext:
    """Continue the caller's trace, or begin one when there is none that can be read."""
    fresh = os.urandom(24).hex()
    if traceparent is not None and len(traceparent) <= 512:
        match = _TRACEPARENT.fullmatch(traceparent.strip())
        if match and _is_valid(match):
            return TraceContext(match[2], fresh[:16], match[3], _known_flags(match[4]))
    return TraceContext(fresh[:32], fresh[32:], None, "00")


def _known_flags(flags: str) -> str:
    """Sampled and random-id; the standard wants all bits without a meaning yet sent as zero."""
    return f"{int(flags, 16) & 0x03:02x}"


def _is_valid(match: re.Match[str]) -> bool:
    version, trace_id, parent_id, more = match[1], match[2], match[3], match[5]
    if trace_id == _ZERO_TRACE or parent_id == _ZERO_SPAN:
        return False
    return version != "00" or more is None
