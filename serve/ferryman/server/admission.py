"""Who may enter one model: by the room there is, by the time it would take, and by what others have inside."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any

from pydantic import Field

from ferryman.errors import OverloadedError, UnavailableError, UsageError
from ferryman.server.batcher import Batcher, check_deadline
from ferryman.server.clients import Clients
from ferryman.server.costs import Costs
from ferryman.server.decoding import Decoder
from ferryman.server.queueing import Caller
from ferryman.server.statistics import Statistics
from ferryman.specs import Facts

SHARE = 0.8  # of the time until its deadline that a request may be foretold to take, but for one more run
_REMEMBERED = 64  # pictures whose size tells that of the next
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0  # that a client who is refused is told


class EngineLimits(Facts):
    """max_batch: images in one run of the session; fewer where more don't help, see `Costs`

    concurrency: runs of one model side by side; more than one pays where `streams` share a processor, or on a GPU
    queue_limit: images of one model that may be inside at a time: being decoded, waiting or running
    queue_seconds: the longest wait for its turn, by what batches took so far, that a request is let in to, whatever
        its deadline; a client that has waited longer has mostly gone
    """

    max_batch: Annotated[int, Field(ge=1)] = 32
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    queue_limit: Annotated[int, Field(ge=1)] = 256
    queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0


class RetiredError(UnavailableError):
    """The model takes no more requests, as another version answers now, or none."""


class Admission:
    """Counts what is inside one model, and refuses what has no place there, or no time; from any thread.

    name, version: of the model, for who is refused; costs: of each of its sizes, now
    batcher, decoder: where images wait; key: what the decoder knows the model by
    ready: whether the model can be asked
    """

    def __init__(
        self,
        name: str,
        version: int,
        limits: EngineLimits,
        costs: Callable[[], Sequence[Costs]],
        batcher: Batcher[Any, Any],
        decoder: Decoder,
        key: int,
        clients: Clients,
        statistics: Statistics,
        ready: Callable[[], bool],
    ) -> None:
        self._name, self._version, self._limits = name, version, limits
        self._costs = costs
        self._batcher = batcher
        self._decoder = decoder
        self._key = key
        self._clients = clients
        self._statistics = statistics
        self._ready = ready
        self._lock = threading.Lock()  # of all that follows
        self.inside = 0  # images that are being decoded, waiting or running
        self._of_clients = Counter[str]()
        self._decoding = Counter[Caller]()
        self._sizes = deque[int](maxlen=_REMEMBERED)  # of the last pictures
        self._retired = False

    def retire(self) -> None:
        """From now on requests are refused."""
        with self._lock:
            self._retired = True

    def pictures(self, count: int, deadline: float | None, caller: Caller) -> "Inside":
        """`with` it so many encoded pictures are inside, until they are answered. See `Inside`."""
        return Inside(self, {self._guess_size(): count}, deadline, caller, encoded=True)

    def canvases(self, sizes: Sequence[int], deadline: float | None, caller: Caller) -> "Inside":
        """`with` it canvases are inside, until they are answered. sizes: index of each one's size. See `Inside`."""
        return Inside(self, {sizes[0]: 1} if len(sizes) == 1 else Counter(sizes), deadline, caller, encoded=False)

    def begin_decoding(self, count: int, caller: Caller) -> None:
        with self._lock:
            self._decoding[caller] += count

    def end_decoding(self, count: int, caller: Caller, sizes: Sequence[int] = ()) -> None:
        """sizes: that the pictures turned out to have, none where they could not be decoded"""
        with self._lock:
            self._sizes.extend(sizes)
            self._decoding[caller] -= count
            if not self._decoding[caller]:
                del self._decoding[caller]

    def enter(self, sizes: Mapping[int, int], deadline: float | None, caller: Caller, encoded: bool) -> None:
        """See `Inside`."""
        count = sum(sizes.values())
        client = caller.client
        with self._lock:
            self._check_open(count)
            if deadline is not None:
                check_deadline(deadline)
            self._check_wait(sizes, deadline, caller, encoded)
            if self._clients.limited:
                self._clients.check(client, count)
            if self.inside + count > self._limits.queue_limit:
                self._make_room(count, caller)  # nobody gives way to who is refused, who has sent nothing
            if self._clients.limited:
                self._clients.enter(client, count)
            self.inside += count
            self._of_clients[client] += count

    def leave(self, count: int, client: str) -> None:
        if self._clients.limited:
            self._clients.leave(client, count)
        with self._lock:
            self.inside -= count
            left = self._of_clients[client] - count
            if left:
                self._of_clients[client] = left
            else:
                del self._of_clients[client]

    def note_failure(self, start: float) -> None:
        """start: of the request, in seconds of `time.perf_counter`"""
        self._statistics.add_failure(int((time.perf_counter() - start) * 1e9))

    def _check_open(self, count: int) -> None:
        if self._retired:
            raise RetiredError(f"{self._name} version {self._version} is being unloaded")
        if not self._ready():
            raise UnavailableError(f"{self._name} has failed and is being rebuilt; ask again later")
        limit = self._limits.queue_limit
        if count > limit:
            raise UsageError(f"{count} images at a time are more than the limit of {limit}; send fewer", "images")

    def _guess_size(self) -> int:
        """The size of a picture is not known before it is decoded: that of most of the last ones stands for it."""
        return Counter(self._sizes).most_common(1)[0][0] if self._sizes else 0

    def _make_room(self, count: int, caller: Caller) -> None:
        limit = self._limits.queue_limit
        over = self.inside + count - limit
        # About the time in which one batch makes room, or one picture that is decoded.
        wait_s = max(costs.seconds(costs.best) for costs in self._costs())
        wait_s = _clip(max(wait_s, self._decoder.image_s() if self._decoding else 0.0))
        error = OverloadedError(
            f"{self._name} has {self.inside} images to answer already, the limit is {limit}; "
            f"ask again in {wait_s:.2f} s",
            wait_s,
        )
        # Low gives way to high; then who has most inside to who still has fewer with this request.
        [(greediest, most)] = self._of_clients.most_common(1)
        fewer = self._of_clients[caller.client] + count <= most - count
        for who in (None, *([greediest] if fewer else [])):
            if caller.priority == "high" and self._evict(who, over if who is None else count, error):
                return
        raise error

    def _evict(self, client: str | None, count: int, error: Exception) -> bool:
        """Takes out so many images of a client, or of low priority, first those that are not even decoded.

        Returns False, and leaves all as it is, when not so many wait.
        """
        encoded = self._decoder.newest(client, self._key)
        decoded = self._batcher.newest(client)
        if len(encoded) + len(decoded) < count:
            return False
        self._decoder.evict(encoded[:count], error)
        self._batcher.evict(decoded[: max(0, count - len(encoded))], error)
        return True

    def _check_wait(self, sizes: Mapping[int, int], deadline: float | None, caller: Caller, encoded: bool) -> None:
        ready = not (encoded or self._decoding)
        if ready and self._batcher.starts_at_once(sizes):
            return  # whether one run takes too long only trying tells; of several in turn the times do
        own_s = self._batcher.own(sizes)
        allowed_s = self._limits.queue_seconds + own_s
        if deadline is not None:
            # What waits may take longer than it did, and answers must travel.
            costs = self._costs()
            spare_s = max(costs[size].seconds(1) for size in sizes)
            allowed_s = min(allowed_s, SHARE * (deadline - time.monotonic()) - spare_s)
        coming: dict[Caller, float] = {}
        if self._decoding:
            image_s = self._costs()[self._guess_size()].image_s()
            coming = {one: count * image_s for one, count in self._decoding.items()}
        if ready and self._batcher.predict_at_most(sizes) <= allowed_s:
            return
        wait_s = self._batcher.predict(sizes, caller, coming)
        if encoded:  # while pictures are decoded the device goes on with what waits for it
            wait_s = max(wait_s, self._decoder.predict(sum(sizes.values()), caller))
        if wait_s == 0:
            if self._batcher.fits_in_one_turn(sizes):
                return
            wait_s = own_s
        if wait_s > allowed_s:
            again_s = _clip(wait_s - allowed_s)
            raise OverloadedError(
                f"{self._name} would take {wait_s:.2f} s to answer, and {max(0.0, allowed_s):.2f} s are allowed; "
                f"ask again in {again_s:.2f} s",
                again_s,
            )


class Inside:
    """A request's images, inside a model from `with` to its end; what raises there counts as a failure.

    Entering raises OverloadedError when there is no place for them, or not enough time, RetiredError and
    UnavailableError when the model can't be asked, UsageError when they are more than may ever be, and as
    `check_deadline`.
    """

    def __init__(
        self, admission: Admission, sizes: Mapping[int, int], deadline: float | None, caller: Caller, encoded: bool
    ) -> None:
        self._admission = admission
        self._sizes = sizes
        self._deadline = deadline
        self._caller = caller
        self._encoded = encoded

    def __enter__(self) -> None:
        self._start = time.perf_counter()
        try:
            self._admission.enter(self._sizes, self._deadline, self._caller, self._encoded)
        except BaseException:
            self._admission.note_failure(self._start)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave(sum(self._sizes.values()), self._caller.client)
        if kind is not None:  # cancelled as well
            self._admission.note_failure(self._start)


def _clip(wait_s: float) -> float:
    return min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, wait_s))
