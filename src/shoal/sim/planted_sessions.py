"""Workers' sessions that are wrong in one way each."""

from __future__ import annotations

from shoal.core import machine as k
from shoal.core.arrival import Arrival
from shoal.core.session import Session
from shoal.wire import messages as m


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


class PushesOnce(Session):
    """Does not give the server that has taken another's place what that one had acknowledged."""

    def _placed(self, placed: m.Placed) -> list[k.Effect]:
        before = [set(courier.unacknowledged) for courier in self.couriers]
        effects = super()._placed(placed)
        for courier, unacknowledged in zip(self.couriers, before, strict=True):
            courier.unacknowledged = unacknowledged
        return effects


class TakesWhatCannotBeSeen(Session):
    """Takes parameters that a new primary sent before they shared memory for those that lie in it."""

    def _lacks(self, parameters: m.Parameters) -> bool:
        near, self.near = self.near, {self.shard_of(parameters.server)} if parameters.stamp else set()
        lacking = super()._lacks(parameters)
        self.near = near
        return lacking


class AddsToAnything(Session):
    """Takes what has changed in a block whatever version of it is here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrival = AnyArrival()


class AnyArrival(Arrival):
    def fits(self, parameters: m.Parameters) -> bool:
        return True


class StaysWithTheOld(Session):
    """Does not mind that other servers lead some shards."""

    def _placed(self, placed: m.Placed) -> list[k.Effect]:
        return []
