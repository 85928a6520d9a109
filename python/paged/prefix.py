# SPDX-License-Identifier: Apache-2.0
"""`Prefix`: a beginning that sessions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paged.receipts import Explanation, Receipt
    from paged.session import Prompt, Session


class Prefix:
    """Tokens with which many sessions begin. Made by `LLM.prefix`, taken by `LLM.session(parent=...)`.

    It is one more owner of its blocks: each is charged in equal parts to the prefix and to the sessions that have it,
    and given up when the last of them is closed. Close it, leave its `with` block or drop it; sessions that began with
    it keep what they have.
    """

    def __init__(self, session: Session, prompt: Prompt) -> None:
        self._session = session
        session.append(prompt)

    @property
    def token_ids(self) -> list[int]:
        """Waits until they are computed."""
        return self._session.token_ids

    def explain(self) -> Explanation:
        """As `Session.explain`: where its tokens live, and what of them is charged to the prefix itself.

        Raises:
            ValueError: it is closed.
        """
        return self._session.explain()

    def pin(self, ttl: float, budget: int | None = None) -> Receipt:
        """As `Session.pin`."""
        return self._session.pin(ttl, budget)

    def close(self) -> Receipt:
        """Gives up what no session has. Again, it is rejected, and nothing happens."""
        return self._session.close()

    def __enter__(self) -> Prefix:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.__exit__()

    def __repr__(self) -> str:
        return f"Prefix(id={self._session._id}, tenant={self._session._tenant!r})"
