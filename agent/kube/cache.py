"""The objects of one kind that the API server has, kept by list and watch. Pure: bytes in, changes out.

    list --> pages --> all objects, as of a resource version --> watch events --> the objects now
      ^                                                              |
      +---- the version has expired (410), or an event is unreadable +

Semantics of kubernetes.io/docs/reference/using-api/api-concepts, "Efficient detection of changes": a list may come in
pages with a `continue` token; a watch begins at the list's resource version; a BOOKMARK moves the version on without a
change; an ERROR event carries a Status, 410 where the version is too old. A list replaces everything at once: an object
that it lacks is gone, and until it is complete the last known objects stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from agent.kube.errors import ApiFailed
from agent.kube.objects import Key, ObjectMeta

T = TypeVar("T")
EXPIRED: Final = 410
MAX_EVENT_BYTES: Final = 4 << 20  # etcd's limit of an object is 1.5 MiB


class UnreadableAnswer(ValueError):
    """The API server's bytes are not what its API promises; the message says what is wrong."""


class RefusedObject(NamedTuple):
    """An object that cannot be used: its namespace and name, and what is wrong with it."""

    key: Key
    reason: str


class Change(Enum):
    """What a watch event did."""

    NONE = "none"  # a bookmark, or an object that is equal for the agent
    OBJECTS = "objects"
    RELIST = "relist"  # the version has expired: list again


class _ListMeta(Struct, rename={"resource_version": "resourceVersion", "continue_": "continue"}):
    resource_version: str = ""
    continue_: str = ""


class _Page(Struct):
    metadata: _ListMeta
    items: list[Raw] | None = None


class _Event(Struct):
    type: str
    object: Raw


class _Named(Struct):
    metadata: ObjectMeta


class ApiStatus(Struct):
    """A Status object of the API server."""

    code: int = 0
    reason: str = ""
    message: str = ""


_PAGES: Final = msgspec.json.Decoder(_Page)
_EVENTS: Final = msgspec.json.Decoder(_Event)
_NAMED: Final = msgspec.json.Decoder(_Named)
_STATUS: Final = msgspec.json.Decoder(ApiStatus)


class ObjectCache(Generic[T]):
    """Objects by namespace and name. `decode` makes what is kept of an object from its JSON; it raises
    `msgspec.ValidationError` for one that cannot be used, which is then in `refused` and otherwise ignored.

    `resource_version` is empty until a list is complete, and again when it has expired. `listed`: one was complete.
    """

    def __init__(self, decode: Callable[[Raw], T]) -> None:
        self._decode = decode
        self.objects: dict[Key, T] = {}
        self.refused: dict[Key, RefusedObject] = {}
        self.resource_version = ""
        self.listed = False
        self._coming: dict[Key, T] = {}
        self._coming_refused: dict[Key, RefusedObject] = {}
        self._coming_version = ""
        self._changed: set[Key] = set()

    # -- list ----------------------------------------------------------------------------------------------------------

    def begin_list(self) -> None:
        """A list begins; pages of one that did not end are dropped."""
        self._coming, self._coming_refused = {}, {}

    def page(self, data: bytes) -> tuple[Sequence[Raw], str]:
        """The objects of a page of the list, for `add`, and the token of the next page, empty after the last. Raises
        UnreadableAnswer."""
        try:
            page = _PAGES.decode(data)
        except msgspec.DecodeError as error:
            raise UnreadableAnswer(f"not a list of objects: {error}") from error
        token = page.metadata.continue_
        if not token:
            if not page.metadata.resource_version:
                raise UnreadableAnswer("the list has no resourceVersion")
            self._coming_version = page.metadata.resource_version
        return page.items or (), token

    def add(self, items: Iterable[Raw]) -> None:
        """Objects of the list. Raises UnreadableAnswer."""
        for raw in items:
            self._put(raw, self._coming, self._coming_refused)

    def end_list(self) -> bool:
        """The list is complete: it replaces all objects. Returns whether anything changed."""
        before, coming = self.objects, self._coming
        changed = {key for key, item in coming.items() if before.get(key) != item}
        changed |= before.keys() - coming.keys()
        self._changed |= changed
        different = bool(changed) or not self.listed or self._coming_refused != self.refused
        self.objects, self.refused, self.resource_version = coming, self._coming_refused, self._coming_version
        self.begin_list()
        self.listed = True
        return different

    def take_changed(self) -> set[Key]:
        """The keys of objects that were added, changed or removed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def mark_all_changed(self) -> None:
        """Let `take_changed` return every key."""
        self._changed |= self.objects.keys()

    # -- watch ---------------------------------------------------------------------------------------------------------

    def apply(self, line: bytes) -> Change:
        """One event of the watch. Raises UnreadableAnswer for what is no event, after which to list again, and
        `ApiFailed` for an ERROR event other than 410."""
        try:
            event = _EVENTS.decode(line)
            if event.type == "ERROR":
                status = _STATUS.decode(event.object)
                if status.code != EXPIRED:
                    raise ApiFailed(status.code, status.message or status.reason)
                self.resource_version = ""
                return Change.RELIST
            meta = _NAMED.decode(event.object).metadata if event.type != "BOOKMARK" else _bookmark(event.object)
        except msgspec.DecodeError as error:
            raise UnreadableAnswer(f"not a watch event: {error}") from error
        version = meta.resource_version
        if not version:
            raise UnreadableAnswer(f"an event of type {event.type} has no resourceVersion")
        self.resource_version = version
        key = (meta.namespace, meta.name)
        match event.type:
            case "BOOKMARK":
                return Change.NONE
            case "ADDED" | "MODIFIED":
                before = self.objects.get(key), self.refused.get(key)
                self._put(event.object, self.objects, self.refused)
                if before == (self.objects.get(key), self.refused.get(key)):
                    return Change.NONE
                self._changed.add(key)
                return Change.OBJECTS
            case "DELETED":
                self._changed.add(key)
                known = self.objects.pop(key, None) is not None
                return Change.OBJECTS if (self.refused.pop(key, None) is not None) or known else Change.NONE
        raise UnreadableAnswer(f"an event of the unknown type {event.type!r}")

    # -- within --------------------------------------------------------------------------------------------------------

    def _put(self, raw: Raw, objects: dict[Key, T], refused: dict[Key, RefusedObject]) -> None:
        try:
            meta = _NAMED.decode(raw).metadata
        except msgspec.DecodeError as error:
            raise UnreadableAnswer(f"an object without a name: {error}") from error
        key = (meta.namespace, meta.name)
        try:
            objects[key] = self._decode(raw)
            refused.pop(key, None)
        except msgspec.ValidationError as error:
            objects.pop(key, None)
            refused[key] = RefusedObject(key, str(error))


class _BookmarkMeta(Struct, rename="camel"):
    resource_version: str = ""


class _Bookmark(Struct):
    metadata: _BookmarkMeta


def _bookmark(raw: Raw) -> ObjectMeta:
    """The metadata of a bookmark, which has a resource version and no name."""
    return ObjectMeta("", resource_version=msgspec.json.decode(raw, type=_Bookmark).metadata.resource_version)


class LineBuffer:
    """Splits the bytes of a watch into lines; a line over MAX_EVENT_BYTES raises UnreadableAnswer."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The complete lines so far, without empty ones."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > MAX_EVENT_BYTES:
                raise UnreadableAnswer(f"a watch event is over {MAX_EVENT_BYTES} bytes")
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [line for line in lines if line.strip()]


def status_message(data: bytes) -> str:
    """The message of a Status in an error response; the beginning of any other body."""
    try:
        return _STATUS.decode(data).message or data[:200].decode("utf-8", "replace")
    except msgspec.DecodeError:
        return data[:200].decode("utf-8", "replace")


def decoder_of(kind: type[T]) -> Callable[[Raw], T]:
    """A decoder of objects of this type."""
    decoder = msgspec.json.Decoder(kind)
    return decoder.decode
