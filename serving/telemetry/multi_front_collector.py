"""Metrics of several fronts in one registry, with the front as a label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


class MultiInstanceCollector:
    """Collects the metrics of several fronts, given in Prometheus text format by the name of the front."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; their samples have the label `replica` in addition."""
        families: dict[str, Metric] = {}
        for front, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                merged.samples += [
                    sample._replace(labels={**sample.labels, "replica": front}) for sample in family.samples
                ]
        yield from families.values()
