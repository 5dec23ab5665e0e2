"""Workers' sessions that are wrong in one way each."""

from __future__ import annotations

from shoal.core import machine as k
from shoal.core.arrival import Arrival
from shoal.core.session import Session


class TrustsTheFallen(Session):
    """Goes on as the last coordinator promised, though the new one may know nothing of it."""

    def _ask_again(self, now: int) -> None:
        if self.released is None and self.granted is None:
            super()._ask_again(now)


class ReadyTooSoon(Session):
    """Makes its contribution ready without waiting for the servers' word."""

    def _make_ready(self, now: int) -> list[k.Effect]:
        for courier in self.couriers:
            courier.unacknowledged.clear()
        return super()._make_ready(now)


class MixesVersions(Arrival):
    """Counts arrived blocks whatever version they are of."""

    def expect(self, version: int) -> None:
        arrived = self.arrived
        super().expect(version)
        self.arrived = arrived


class ReadsInPlace(Session):
    """Computes on the servers' memory under every policy."""

    def step(self, event: object, now: int) -> list[k.Effect]:
        effects = super().step(event, now)
        self.still = True
        return effects


class ClaimsWhole(Session):
    """Spares near servers the word of what it pushed, though it did not push everything."""

    def _flush(self, now: int) -> list[k.Effect]:
        effects = super()._flush(now)
        self.whole = self.clock > 0 and bool(self.near)
        return [] if self.whole and len(self.near) == len(self.couriers) else effects


class AsksOnce(Session):
    """Never repeats a request."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.asking.since = now
        return super()._tick(now)


class WaitsForEver(Session):
    """Does not mind a coordinator that says nothing."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.silence.since = None
        return super()._tick(now)


class BlamesOthers(Session):
    """Takes the time that it was stopped itself for the coordinator's silence."""

    def _tick(self, now: int) -> list[k.Effect]:
        self.silence.watch.ticked_at = None
        return super()._tick(now)
