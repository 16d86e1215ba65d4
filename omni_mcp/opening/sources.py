"""Sources that fall back: a refused file at the start leaves what ships in force, and is reported."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from omni_mcp.contracts.errors import ConfigError
from omni_mcp.contracts.ports import Source
from omni_mcp.contracts.tool import Entry
from omni_mcp.engines.catalog.manifests import ManifestDirectory, ManifestSource
from omni_mcp.paths import Home, bundled
from omni_mcp.serving.reports import Reports


class NoSource:
    """A source of nothing."""

    def load(self) -> Iterable[Entry]:
        """As the port."""
        return []


class LastGood:
    """A source that may fail after its first load, and falls back to what ships if it fails at the first."""

    def __init__(self, source: Source, *, fallback: Source, reports: Reports) -> None:
        self._source = source
        self._fallback: Source | None = fallback
        self._reports = reports

    def look(self) -> None:
        """Have the source read what it will be asked for; what is wrong is said when it is."""
        with suppress(ConfigError):
            list(self._source.load())

    def load(self) -> Iterable[Entry]:
        """As the source; at the start a refusal is reported and the shipped entries are served."""
        fallback, self._fallback = self._fallback, None
        try:
            return list(self._source.load())
        except ConfigError as error:
            if fallback is None:
                raise
            self._reports.stands("manifests", error.problems)
            return list(fallback.load())


def manifests_of(home: Home, reports: Reports) -> LastGood:
    """All manifests; if the operator's are refused at the start, they are served without them, and that is said."""
    shipped = ManifestDirectory(path=bundled("manifests"), bundled=True)
    code = bundled("sandbox") / "tools"
    everything = ManifestSource([shipped, ManifestDirectory(path=home.manifests)], code=code)
    return LastGood(everything, fallback=ManifestSource([shipped], code=code), reports=reports)
