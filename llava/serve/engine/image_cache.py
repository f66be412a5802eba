"""Encoded pictures by content, so that a picture asked about twice passes the vision tower once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from llava.serve.engine.prompts import EncodedPicture


class PictureCache:
    """Least recently used pictures go when there are too many bytes.

    Args:
        budget: bytes of tokens and weights to keep; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used_bytes = 0
        self.hits = 0
        self.misses = 0
        self._pictures: OrderedDict[Hashable, EncodedPicture] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, encode: Callable[[], EncodedPicture]) -> EncodedPicture:
        """The picture of that key, encoded now if it is not there."""
        with self._lock:
            found = self._pictures.get(key)
            if found is not None:
                self.hits += 1
                self._pictures.move_to_end(key)
                return found
            self.misses += 1
        picture = encode()
        self._put(key, picture)
        return picture

    def _put(self, key: Hashable, picture: EncodedPicture) -> None:
        if picture.num_bytes > self.budget:
            return
        with self._lock:
            if key in self._pictures:
                return
            self._pictures[key] = picture
            self.used_bytes += picture.num_bytes
            while self.used_bytes > self.budget:
                self.used_bytes -= self._pictures.popitem(last=False)[1].num_bytes
