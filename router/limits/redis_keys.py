"""Names of Redis keys. All keys of one decision share the organization's hash tag, hence a slot."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=4096)
def tag(organization_id: str) -> str:
    """The beginning of every key of an organization: ``router:{acme}:``."""
    if not organization_id or "{" in organization_id or "}" in organization_id:
        raise ValueError(f"no organization id that can be a hash tag: {organization_id!r}")
    return f"router:{{{organization_id}}}:"


def quoted(part: str) -> str:
    """``part`` without the separator, so that no two lists of parts make the same name."""
    return part.replace("%", "%25").replace(":", "%3A")
