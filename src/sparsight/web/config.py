"""Where the explorer listens, and for how long."""

import ipaddress
from dataclasses import dataclass

from sparsight.errors import RunError

__all__ = ["ExplorerConfig"]


@dataclass(frozen=True, kw_only=True)
class ExplorerConfig:
    """Options of `serve`."""

    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs `allow_remote`."""
    port: int = 0
    """TCP port; 0 takes a free one."""
    allow_remote: bool = False
    """Let other machines connect. They need the token of the printed URL, which travels unencrypted."""
    browser: bool = True
    """Open the page in a browser."""
    idle_minutes: float = 0.0
    """Stop after this many minutes without a request; 0 never."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RunError(f"--port is {self.port}; expected 0 (a free one) to 65535.")
        if not self.idle_minutes >= 0:
            raise RunError(f"--idle-minutes is {self.idle_minutes}; expected 0 (never) or more.")
        if not self.is_local and not self.allow_remote:
            raise RunError(
                f"--host {self.host} would let other machines read this run and run its model. Add --allow-remote if that is "
                "meant; else leave --host away and forward the port, such as with `ssh -L`."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
