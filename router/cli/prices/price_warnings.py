"""What is doubtful about a document's prices; nothing of it is a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from router.call import UsageClass
from router.cli.prices.catalogue import Catalogue, is_installed
from router.cli.prices.matching import Match, find, is_free, same, serving
from router.config.document import Backend, LoadedDocument, Model, Prices
from router.providers.provider_table import REPORTED_CLASSES

_Place = tuple[Model, Backend, Prices]


def price_warnings(document: LoadedDocument) -> Iterator[str]:
    """Classes that a backend can report and its model has no price for; prices that a newer price
    list no longer has."""
    places = [place for model in document.models for place in _places(document, model)]
    doubtful = [place for place in places if place[2].as_of or _missing(place)]
    catalogue = Catalogue() if doubtful and is_installed() else None
    unpriced: dict[tuple[str, ...], list[str]] = {}
    outdated: dict[str, list[str]] = {}
    for model, backend, prices in doubtful:
        match = None if catalogue is None else find(catalogue, model, backend)
        name = f"{model.id} at {backend.id}"
        missing = _missing((model, backend, prices), match)
        if missing:
            unpriced.setdefault(tuple(missing), []).append(name)
        if prices.as_of and _is_outdated(prices, match):
            outdated.setdefault(prices.as_of, []).append(name)
    for classes, names in unpriced.items():
        yield f"no price for {', '.join(classes)}: {', '.join(names)}"
    for day, names in outdated.items():
        yield (
            f"prices of {day} differ from {catalogue}: {', '.join(names)};"
            " see 'routerctl prices diff'"
        )


def _places(document: LoadedDocument, model: Model) -> Iterator[_Place]:
    """Where calls of the model cost something."""
    for backend in serving(document, model.id):
        prices = backend.prices.get(model.id) or model.prices
        if prices is not None and not is_free(prices):
            yield model, backend, prices


def _missing(place: _Place, match: Match | None = None) -> list[UsageClass]:
    """The classes that may be reported there without a price. What the catalogue has of a model
    counts more than what others of the same kind can report."""
    _, backend, prices = place
    possible = set(REPORTED_CLASSES[backend.kind])
    if match is not None and match.listed is not None:
        possible = _priced(match.listed.prices)
    return sorted(possible - _priced(prices))


def _priced(prices: Prices) -> set[UsageClass]:
    found = set(prices.classes)
    return found if prices.cached_input_nanos is None else found | {"cache_read"}


def _is_outdated(prices: Prices, match: Match | None) -> bool:
    """Tell whether a newer price list has other prices."""
    if match is None or match.listed is None:
        return False
    listed = match.listed.prices
    return (prices.as_of or "") < (listed.as_of or "") and not same(prices, listed)
