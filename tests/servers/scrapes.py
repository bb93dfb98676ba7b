"""A scrape of `/metrics`, taken apart."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]
Samples = dict[Series, float]


def samples(text: str) -> Samples:
    """Every sample of a scrape that only ever grows."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        if family.type in ("counter", "histogram"):
            for sample in family.samples:
                found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def total(scrape: Samples, **labels: str) -> float:
    """Requests with these labels."""
    return sum(
        value
        for (name, found), value in scrape.items()
        if name == "api_router_requests_total" and labels.items() <= dict(found).items()
    )


def series(text: str) -> set[Series]:
    """Every series of a scrape."""
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def gauge(text: str, name: str) -> float:
    """The sum of a gauge over its labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )
