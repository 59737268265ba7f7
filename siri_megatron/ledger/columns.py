"""What decisions read of a ledger step, as a type: the pure rooms name it without importing the reader."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class LedgerColumns(Protocol):
    """Columns of a ledger step (`ledger.read.StepRows`), [n] each."""

    @property
    def cap(self) -> NDArray[Any]: ...
    @property
    def forced_length(self) -> NDArray[Any]: ...
    @property
    def group(self) -> NDArray[Any]: ...
    @property
    def prompt_id(self) -> NDArray[Any]: ...
    @property
    def prompt_length(self) -> NDArray[Any]: ...
    @property
    def response_length(self) -> NDArray[Any]: ...
    @property
    def reward(self) -> NDArray[Any]: ...
    @property
    def truncated(self) -> NDArray[Any]: ...
