"""Workers' sessions that are wrong in one way each."""

from __future__ import annotations

from shoal.config import Limits
from shoal.core import machine as k
from shoal.core.arrival import Arrival
from shoal.core.couriers import Couriers
from shoal.core.session import Session
from shoal.sim.world import Machines
from shoal.vocabulary import Contributor
from shoal.wire import messages as m


class TrustsTheFallen(Session):
    """Goes on as the last coordinator promised, though the new one may know nothing of it."""

    def _ask_again(self, now: int) -> None:
        if self.released is None and self.granted is None:
            super()._ask_again(now)


class ReadyTooSoon(Session):
    """Makes its contribution ready without waiting for the servers' word."""

    def _make_ready(self, now: int) -> list[k.Effect]:
        for courier in self.couriers.every:
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


class TakesWhatCannotBeSeen(Session):
    """Takes parameters that a new primary sent before they shared memory for those that lie in it."""

    def _lacks(self, parameters: m.Parameters) -> bool:
        couriers = self.couriers
        near, couriers.near = couriers.near, {couriers.shard_of(parameters.server)} if parameters.stamp else set()
        lacking = super()._lacks(parameters)
        couriers.near = near
        return lacking


class AddsToAnything(Session):
    """Takes what has changed in a block whatever version of it is here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrival = AnyArrival()


class AnyArrival(Arrival):
    def fits(self, parameters: m.Parameters) -> bool:
        return True


# --- couriers -----------------------------------------------------------------------------------


class ClaimsWhole(Couriers):
    """Spares near servers the word of what was pushed, though not everything was."""

    def flush(self, who: Contributor, now: int) -> list[k.Effect]:
        effects = super().flush(who, now)
        self.whole = not who.seeds and bool(self.near)
        return [] if self.whole and len(self.near) == len(self.every) else effects


class PushesOnce(Couriers):
    """Does not give the server that has taken another's place what that one had acknowledged."""

    def move(self, placed: m.Placed) -> list[k.Effect]:
        before = [set(courier.unacknowledged) for courier in self.every]
        effects = super().move(placed)
        for courier, unacknowledged in zip(self.every, before, strict=True):
            courier.unacknowledged = unacknowledged
        return effects


class StaysWithTheOld(Couriers):
    """Does not mind that other servers lead some shards."""

    def move(self, placed: m.Placed) -> list[k.Effect]:
        return []


def with_couriers(kind: type[Couriers]) -> Machines:
    """Workers that have such ones."""

    def session(limits: Limits) -> Session:
        made = Session(limits)
        made.couriers = kind(limits)
        return made

    return Machines(session=session)
