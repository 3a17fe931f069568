"""What follows from the responses to picked requests, for the routing state and for the prefix index.

The proxy reports a response in one of two ways. Its access log has an entry for each request when it is over, with the
endpoint that answered and what failed. Where the gateway cannot send its access log, the response headers over ext_proc
carry the status, and a proxy that knows the attributes adds the rest. With both, the later report adds what the first
could not know: a response that breaks off.

A request that failed, or that its client cut off before the first byte of a response, is not credited to the prefix
index: its prompt was not prefilled as far as anybody knows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from agent.events import Hook
from agent.events.exchange import Exchange
from agent.events.requests import Completed, NotFollowed, Responded, UnknownLogEntry, Unreported
from agent.prefix.index import PrefixIndex
from agent.requests.response import CLIENT_LEFT, CUT, OK, RESULTS, RETRIED, Response, result_of
from agent.requests.sharing import NOT_SHARED, Sharing
from agent.requests.ticket import NEVER, Ticket
from agent.state.store import RoutingStore

# How long, and for how many requests that are over, an entry of the access log is awaited. It comes within the flush
# interval of the proxy's log.
AWAITED_SECONDS: Final = 10.0
MAX_AWAITED: Final = 4096
# Requests whose entry is awaited before the proxy has opened its log: Envoy opens it with the first entry.
FIRST_AWAITED: Final = 64
MAX_COMPARED: Final = 16  # requests with one id that an entry is compared with
# Prompt blocks that all requests together keep, so that their credit can be taken back. A request beyond keeps none:
# its blocks stay in the index until they are evicted. 500,000 references are 4 MB.
MAX_KEPT_BLOCKS: Final = 500_000


class Outcomes:
    """Applies the responses of one pool's picked requests to its routing state and its prefix index.

    `open_logs` counts the access log streams of the proxy, here and at peers. Without one, and before the first
    response headers, nothing but the ticket is kept for a request, and for the first ones only. A proxy may send
    the log to another replica than the one that has picked: an entry of a request that was not picked here is
    passed to the peers, and one from a peer never is.
    """

    def __init__(self, store: RoutingStore, index: PrefixIndex, hook: Hook, sharing: Sharing = NOT_SHARED) -> None:
        self._store = store
        self._index = index
        self._hook = hook
        self._sharing = sharing
        self.open_logs = 0
        self._own_logs = 0
        self._headers_seen = False  # this port gets response headers
        self._first_awaited = FIRST_AWAITED  # requests that may still end before the log opens
        # By request id, which clients may repeat: requests of which an entry is to come, in order.
        self._expected: dict[str, dict[Ticket, None]] = {}
        self._over: OrderedDict[Ticket, float] = OrderedDict()  # those of them that have ended, and when
        self.on_late_result: list[Callable[[Ticket, float], None]] = []  # of a request that is over
        self._blocks = 0  # blocks that tickets keep for a withdrawal of their credit

    @property
    def kept(self) -> int:
        """Requests for which an entry of the access log is expected."""
        return sum(map(len, self._expected.values()))

    def awaited(self, ticket: Ticket) -> bool:
        """Whether the request is over and its entry of the access log is to come: not before the log is opened."""
        return self.open_logs > 0 and ticket in self._over

    # -- the stage that picks ------------------------------------------------------------------------------------------

    def picked(self, ticket: Ticket, chain: Sequence[int], known_blocks: int, block_tokens: int) -> None:
        """A ticket was picked for its endpoint, which held `known_blocks` of its chain, and the index has recorded the
        whole chain. A block has `block_tokens` tokens."""
        if self._awaits:
            self._expected.setdefault(ticket.request_id, {})[ticket] = None
        if not (self.open_logs or self._headers_seen):
            return
        if self._blocks + len(chain) <= MAX_KEPT_BLOCKS:
            self._blocks += len(chain)
            ticket.chain = chain
            ticket.known_blocks = known_blocks
            ticket.block_tokens = block_tokens

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """The request is over. Its entry in the access log may be on its way."""
        if how == "closed" and self._awaits and ticket in self._expected.get(ticket.request_id, ()):
            over = self._over
            self._first_awaited -= not self.open_logs
            over[ticket] = now
            while len(over) > MAX_AWAITED or next(iter(over.values())) < now - AWAITED_SECONDS:
                self._give_up(next(iter(over)))
            return
        if how == "closed" and self._headers_seen:
            if not ticket.result:
                self._apply(ticket, Response(0, client_left=True, complete=True), now)
            cut = ticket.exchange is None and ticket.first_byte_at != NEVER
            self._complete(ticket, ticket.exchange, CUT if cut and ticket.result == OK else ticket.result)
        self._forget(ticket)
        if not self._awaits:
            for waiting in tuple(self._over):
                self._forget(waiting)

    # -- reports of the proxy ------------------------------------------------------------------------------------------

    def responded(self, ticket: Ticket, response: Response, now: float) -> None:
        """The response headers of a ticket in flight."""
        self._headers_seen = True
        self._apply(ticket, response, now)

    def logged(self, request_id: str, response: Response, now: float) -> None:
        """An entry of the access log. Of several requests with one id, it belongs to one that was picked for the
        endpoint that answered, the oldest first."""
        if not self._logged(request_id, response, now):
            self._hook(UnknownLogEntry(self._store.pool))
            self._sharing.logged(request_id, response)

    def logged_at_peer(self, request_id: str, response: Response, now: float) -> None:
        """An entry of the access log that a peer has received, and that is of none of its own requests."""
        self._logged(request_id, response, now)

    def log_opened(self) -> None:
        """The proxy has opened an access log stream."""
        self._own_logs += 1
        self._sharing.logs(self._own_logs)
        self.peer_log_opened()

    def log_closed(self) -> None:
        """An access log stream has ended."""
        self._own_logs -= 1
        self._first_awaited = FIRST_AWAITED
        self._sharing.logs(self._own_logs)
        self.peer_log_closed()

    def peer_log_opened(self) -> None:
        """An access log stream is open at a peer."""
        self.open_logs += 1

    def peer_log_closed(self) -> None:
        """That is over. Without another one, no further entry comes."""
        if self.open_logs == 1:
            for ticket in tuple(self._over):
                self._give_up(ticket)
        self.open_logs -= 1

    @property
    def _awaits(self) -> bool:
        """Whether an entry of the access log may come for a request."""
        return self.open_logs > 0 or (self._first_awaited > 0 and not self._headers_seen)

    # -- within --------------------------------------------------------------------------------------------------------

    def _logged(self, request_id: str, response: Response, now: float) -> bool:
        """Apply an entry; False where its request is not known here."""
        tickets = self._expected.get(request_id)
        if not tickets:
            return False
        first = next(iter(tickets))
        served = response.served
        ticket = next((each for each in islice(tickets, MAX_COMPARED) if each.endpoint == served), first)
        self._apply(ticket, response, now)
        self._complete(ticket, response.exchange, ticket.result)
        if ticket in self._over:
            for call in self.on_late_result:
                call(ticket, now)
        self._forget(ticket)
        return True

    def _apply(self, ticket: Ticket, response: Response, now: float) -> None:
        store = self._store
        if response.served and response.served != ticket.endpoint:
            self._follow(ticket, response, now)
        endpoint = ticket.endpoint
        result = result_of(response, queue_full=response.status == 503 and store.has_queue(endpoint, now))
        row = RESULTS[result]
        if ticket.result and not (row.failure and result != ticket.result):
            return  # the response headers have reported it
        ticket.result, ticket.status = result, response.status
        self._hook(Responded(store.pool, endpoint, result))
        if row.failure:
            store.request_failed(endpoint, ticket.work_id, result, now)
            self._share(ticket, endpoint, result)
        elif result == OK:
            store.succeeded(endpoint, ticket.work_id, now)
            self._share(ticket, endpoint, result)
        if result == OK or (result == CLIENT_LEFT and response.body_bytes):
            self._confirm(ticket)
        else:
            self._withdraw(ticket)
        self._release(ticket, keep=result == OK and not response.complete)

    def _complete(self, ticket: Ticket, exchange: Exchange | None, result: str) -> None:
        """Report the end of a request, once."""
        if ticket.completed:
            return
        ticket.completed = True
        terms, pool = ticket.terms, self._store.pool
        names = (ticket.requested, terms.caller, terms.priority, terms.slo)
        self._hook(Completed(pool, ticket.model, result, ticket.status, exchange, *names))

    def _follow(self, ticket: Ticket, response: Response, now: float) -> None:
        """The proxy sent the request to another endpoint than the picked one: the work and the credit follow it."""
        store, picked, served, pick = self._store, ticket.endpoint, response.served, ticket.pick
        if response.attempts > 1 and not store.unfollowed(picked, now):
            self._hook(Responded(store.pool, picked, RETRIED))
            store.request_failed(picked, ticket.work_id, RETRIED, now)
            self._share(ticket, picked, RETRIED)
        else:
            self._hook(NotFollowed(store.pool, picked, served))
            store.not_followed(picked, now)
        self._withdraw(ticket)
        ticket.endpoint = served
        if pick is None or not store.engine(served):
            return
        chain = ticket.chain
        ticket.known_blocks = self._index.match(chain, (served,))[0]
        if chain:
            self._index.record(served, chain)
        uncached = max(1, pick.prompt_tokens - ticket.known_blocks * ticket.block_tokens)
        if store.moved(ticket.work_id, served, uncached, now):
            self._sharing.moved(ticket.work_id, served, uncached, chain, now)

    def _share(self, ticket: Ticket, endpoint: str, result: str) -> None:
        """Report a result to the peers, if it is one of the server that is at the endpoint now."""
        if self._store.sent(endpoint, ticket.work_id):
            self._sharing.outcome(endpoint, result)

    def _confirm(self, ticket: Ticket) -> None:
        """The endpoint has prefilled the prompt. Its blocks may be gone by the failure of a request with the same."""
        chain, endpoint = ticket.chain, ticket.endpoint
        if chain and not self._index.holds(endpoint, chain[-1]) and self._store.sent(endpoint, ticket.work_id):
            self._index.record(endpoint, chain)

    def _withdraw(self, ticket: Ticket) -> None:
        """Take back the credit for the part of the prompt that the endpoint did not hold before."""
        chain, pick = ticket.chain, ticket.pick
        new = chain[ticket.known_blocks :]
        self._index.remove(ticket.endpoint, new)
        if new:
            self._sharing.withdrawn(ticket.endpoint, new)
        if pick is not None and ticket.endpoint == pick.endpoint:
            self._store.withdraw_hits(pick.endpoint, pick.hit_tokens)

    def _release(self, ticket: Ticket, *, keep: bool) -> None:
        """Give up the ticket's blocks, unless its response may still break off."""
        if not keep:
            self._blocks -= len(ticket.chain)
            ticket.chain = ()

    def _give_up(self, ticket: Ticket) -> None:
        """No entry of a request that is over has come. Without a log, nothing shows that one was to come."""
        if self.open_logs:
            self._hook(Unreported(self._store.pool))
        self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """Expect no report on this ticket any more."""
        self._release(ticket, keep=False)
        self._over.pop(ticket, None)
        tickets = self._expected.get(ticket.request_id)
        if tickets is not None:
            tickets.pop(ticket, None)
            if not tickets:
                del self._expected[ticket.request_id]
