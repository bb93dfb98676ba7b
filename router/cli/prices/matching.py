"""Which entry of the catalogue is a document's model at a backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from router.cli.prices.catalogue import Catalogue, Listed
from router.config.document import ANY, Backend, LoadedDocument, Model, Prices

_OWN_SUFFIXES: Final = (".local", ".internal", ".localhost", ".lan", ".svc")


@dataclass(frozen=True, slots=True)
class Match:
    """A model at a backend, or at all of them, and what the catalogue has for it."""

    model: Model
    backend: Backend | None
    listed: Listed | None
    reason: str
    """How it was found, or why it was not."""


@dataclass(frozen=True, slots=True)
class Change:
    """Prices that a document is to have at a place."""

    match: Match
    backend_id: str | None
    """``None``: the model's own."""
    old: Prices | None
    new: Prices


def matches(
    document: LoadedDocument,
    catalogue: Catalogue,
    *,
    models: frozenset[str] = frozenset(),
    provider: str | None = None,
) -> Iterator[Match]:
    """Every model with every backend that serves it; with a ``provider``, once and for all."""
    for model in document.models:
        if models and models.isdisjoint((model.id, *model.aliases)):
            continue
        backends = serving(document, model.id)
        if provider is not None:
            names = [backend.models.get(model.id, model.id) for backend in backends]
            yield _match(catalogue, model, None, provider, "chosen", names)
            continue
        if not backends:
            yield Match(model, None, None, "no backend serves it")
        for backend in backends:
            yield find(catalogue, model, backend)


def find(catalogue: Catalogue, model: Model, backend: Backend) -> Match:
    """What the catalogue has for a model at a backend.

    The provider is the one that has the backend's address, else the one its kind is named after.
    What is free at a server of one's own is nobody's: it may have the name of any model.
    """
    known, how = catalogue.provider_at(backend.base_url), f"address of {backend.id}"
    if known is None:
        known, how = backend.kind, f"kind of {backend.id}"
        prices = backend.prices.get(model.id) or model.prices
        if prices is not None and is_free(prices) and _is_own(backend.base_url):
            return Match(model, backend, None, f"{backend.id} is one's own, and free")
    return _match(catalogue, model, backend, known, how, [backend.models.get(model.id, model.id)])


def is_free(prices: Prices) -> bool:
    """Tell whether calls cost nothing, whatever they use."""
    return not (prices.input_nanos or prices.output_nanos or any(prices.classes.values()))


def serving(document: LoadedDocument, model_id: str) -> list[Backend]:
    """The backends that serve a model to anybody; all, in a document without policies."""
    if not document.policies:
        return list(document.backends)
    built = document.build(0)
    found = [built.policy_for(name, model_id) for name in (*built.organizations, ANY)]
    ids = {share.backend_id for policy in found if policy is not None for share in policy.shares}
    return [backend for backend in document.backends if backend.id in ids]


def planned(found: list[Match]) -> Iterator[Change]:
    """The prices that the catalogue gives a document, one model after the other.

    A model that has an entry at each of its backends gets the first one's prices, and a backend
    prices of its own where they differ. Where a backend has none, the model's own prices stay: they
    may be this backend's.
    """
    for model in {match.model.id: match.model for match in found}.values():
        of_model = [match for match in found if match.model.id == model.id]
        known = [match for match in of_model if match.listed is not None]
        default = model.prices
        if len(known) == len(of_model):
            default = _listed_prices(known[0])
            yield Change(known[0], None, model.prices, default)
        for match in known:
            if match.backend is None:
                continue
            own, new = match.backend.prices.get(model.id), _listed_prices(match)
            if own is not None or not same(default, new):
                yield Change(match, match.backend.id, own, new)


def same(one: Prices | None, other: Prices) -> bool:
    """Tell whether both charge the same, whatever day they are of."""
    return one is not None and replace(one, as_of=None) == replace(other, as_of=None)


def _listed_prices(match: Match) -> Prices:
    assert match.listed is not None  # only matches with an entry come here
    return match.listed.prices


def _match(
    catalogue: Catalogue,
    model: Model,
    backend: Backend | None,
    provider: str,
    how: str,
    names: list[str],
) -> Match:
    listed = catalogue.find(provider, [*names, model.id, *model.aliases])
    if listed is None:
        names = list(dict.fromkeys([*names, model.id, *model.aliases]))
        return Match(model, backend, None, f"{provider} lists no {', '.join(names)}")
    return Match(model, backend, listed, how)


def _is_own(url: str) -> bool:
    """Tell whether the address is in a private network."""
    host = urlsplit(url).hostname or ""
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(_OWN_SUFFIXES)
