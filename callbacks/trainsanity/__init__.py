"""trainsanity checks whether what Keras training shows is true.

>>> from trainsanity import SanityCallback
>>> model.fit(x, y, callbacks=[SanityCallback()])

Importing this package imports no Keras and no backend; asking for `SanityCallback` imports `keras`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainsanity.auditing import audit
    from trainsanity.callback import SanityCallback
    from trainsanity.settings import Expect

__version__ = "0.1.0"
__all__ = ["Expect", "SanityCallback", "__version__", "audit"]


def __getattr__(name: str) -> Any:
    if name == "SanityCallback":
        from trainsanity.callback import SanityCallback

        return SanityCallback
    if name == "audit":
        from trainsanity.auditing import audit

        return audit
    if name == "Expect":
        from trainsanity.settings import Expect

        return Expect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
