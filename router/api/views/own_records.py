"""Audit trail and usage of the caller's own organization, out of the record store."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from flask import Blueprint, Response
from itsdangerous import BadData

from router import errors
from router.api import pipeline
from router.api.endpoints import ENDPOINTS, Endpoint
from router.api.replies import json_reply
from router.api.scope import Scope, current_scope
from router.config.schema.notation import parse_timestamp
from router.exports.csv_cells import safe_cell
from router.records.record_types import AUDIT_ACTIONS
from router.store.queries.usage_totals import columns_of
from router.store.record_store import RecordStore

blueprint: Final = Blueprint("records", __name__)
blueprint.before_request(pipeline.enter)

MAX_PAGE: Final = 500
DEFAULT_PAGE: Final = 100
FORMATS: Final = ("json", "csv")

_PERIOD: Final = ("from", "to")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_NUMBER: Final = re.compile("[0-9]{1,9}")
_AUDIT_PARAMETERS: Final = frozenset({*_PERIOD, "action", "model", "key", "cursor", "limit"})
_USAGE_PARAMETERS: Final = frozenset({*_PERIOD, "group_by", "model", "key", "backend", "format"})


@blueprint.get("/v1/audit/requests/<request_id>")
def request_story(request_id: str) -> Response:
    """The history of one call: its records and the audit events about it."""
    scope, organization_id = _caller_scope()
    _parameters(scope, frozenset())
    body = scope.services.queries.run(
        lambda store: _story(store, organization_id, request_id), organization_id=organization_id
    )
    if body is None:
        raise errors.RequestNotFound
    return json_reply(body)


@blueprint.get("/v1/audit/requests")
def audit_events() -> Response:
    """Audit events, newest first, a page at a time."""
    scope, organization_id = _caller_scope()
    query = _parameters(scope, _AUDIT_PARAMETERS)
    filters = _chosen(query, "action", "model", "key")
    if filters.get("action", AUDIT_ACTIONS[0]) not in AUDIT_ACTIONS:
        raise errors.InvalidRequest("is no kind of event; see docs/records.md", field="action")
    from_s, to_s = _period(query)
    limit = _limit(query.get("limit"))
    # Signed for one organization: a caller can make up no place to read from.
    cursors, salt = scope.services.cursors, f"audit\0{organization_id}"
    try:
        cursor = cursors.loads(query["cursor"], salt=salt) if "cursor" in query else None
    except BadData:
        raise errors.InvalidRequest("not one that this API gave out", field="cursor") from None

    def written(store: RecordStore) -> bytes:
        page = store.list_audit(
            organization_id,
            from_s=from_s,
            to_s=to_s,
            filters=filters,
            cursor=cursor,
            limit=limit,
        )
        following = page.next_cursor and cursors.dumps(page.next_cursor, salt=salt)
        return _object({"next_cursor": following}, events=page.events)

    return json_reply(scope.services.queries.run(written, organization_id=organization_id))


@blueprint.get("/v1/usage")
def usage() -> Response:
    """Sums over the organization's calls, by any of organization, model, key, backend, time."""
    scope, organization_id = _caller_scope()
    query = _parameters(scope, _USAGE_PARAMETERS)
    filters = _chosen(query, "model", "key", "backend")
    group_by = [name for name in query.get("group_by", "").split(",") if name]
    if len(set(group_by)) != len(group_by):
        raise errors.InvalidRequest("names a group twice", field="group_by")
    shown = query.get("format", "json")
    if shown not in FORMATS:
        raise errors.InvalidRequest(f"must be one of {', '.join(FORMATS)}", field="format")
    from_s, to_s = _period(query)

    def written(store: RecordStore) -> bytes:
        totals = store.usage(
            organization_id, group_by=group_by, from_s=from_s, to_s=to_s, filters=filters
        )
        rows = (total.plain() for total in totals)
        if shown == "csv":
            return _csv(columns_of(group_by), rows)
        return _object({"group_by": group_by}, data=rows)

    body = scope.services.queries.run(written, organization_id=organization_id)
    if shown == "csv":
        return Response(body, content_type="text/csv; charset=utf-8")
    return json_reply(body)


def _story(store: RecordStore, organization_id: str, request_id: str) -> bytes | None:
    story = store.find_request(organization_id, request_id)
    if story is None:
        return None
    facts = {"request_id": request_id, "truncated": story.truncated}
    return _object(facts, records=story.records, events=story.events)


def _object(facts: Mapping[str, Any], **lists: Iterable[Mapping[str, Any]]) -> bytes:
    """An object of ``facts`` and some lists, as JSON.

    Written on the native thread of the query, one element at a time: between two of them the
    loop, for which a large answer at once would be a pause, gets its turn.
    """
    parts = [orjson.dumps(facts)[:-1]]
    for name, elements in lists.items():
        parts.append(b',"%s":[' % name.encode() + b",".join(map(orjson.dumps, elements)) + b"]")
    return b"".join(parts) + b"}"


def _caller_scope() -> tuple[Scope, str]:
    """The scope, and the organization whose records the caller may see: its own."""
    scope = current_scope()
    assert scope.caller is not None
    return scope, scope.caller.organization_id


def _parameters(scope: Scope, known: frozenset[str]) -> dict[str, str]:
    """The query's parameters: only known ones, each at most once."""
    found: dict[str, str] = {}
    for name, values in scope.request.args.lists():
        shown = name[:64]
        if name not in known:
            raise errors.InvalidRequest(f"unknown parameter '{shown}'", field=shown)
        if len(values) != 1:
            raise errors.InvalidRequest("may be given once", field=shown)
        if values[0]:
            found[name] = values[0]
    return found


def _chosen(query: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: query[name] for name in names if name in query}


def _period(query: Mapping[str, str]) -> tuple[float | None, float | None]:
    from_s, to_s = (_moment(query.get(name), name) for name in _PERIOD)
    if from_s is not None and to_s is not None and from_s > to_s:
        raise errors.InvalidRequest("'from' is later than 'to'", field="from")
    return from_s, to_s


def _moment(raw: str | None, field: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 moment or of a date, which begins at 00:00 UTC."""
    if raw is None:
        return None
    try:
        if _DATE.fullmatch(raw):
            return parse_timestamp(f"{raw}T00:00:00Z")
        return parse_timestamp(raw.replace(" ", "+"))  # in a query a plus sign is a space
    except ValueError:
        raise errors.InvalidRequest(
            "must be a moment with its zone, such as 2026-11-01T00:00:00Z, or a date", field=field
        ) from None


def _limit(raw: str | None) -> int:
    if raw is None:
        return DEFAULT_PAGE
    if not _NUMBER.fullmatch(raw) or not 1 <= int(raw) <= MAX_PAGE:
        raise errors.InvalidRequest(f"must be between 1 and {MAX_PAGE}", field="limit")
    return int(raw)


def _csv(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


ENDPOINTS["records.request_story"] = Endpoint("audit:read")
ENDPOINTS["records.audit_events"] = Endpoint("audit:read")
ENDPOINTS["records.usage"] = Endpoint("usage:read")
