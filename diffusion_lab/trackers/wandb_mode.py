"""Whether Weights & Biases is used online, offline or not at all."""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
REACH_SECONDS = 4.0  # for a first connection to the server


def has_credentials() -> bool:
    """Whether wandb finds a key without a prompt: environment, netrc entry of its host, settings file."""
    from wandb.sdk.lib import wbauth

    settings = _settings()
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    try:
        return bool(wbauth.read_netrc_auth(host=settings.base_url))
    except Exception as error:  # a malformed key; the type depends on the library
        log.warning("Weights & Biases: the netrc entry cannot be used (%s)", error)
        return False


def _settings() -> wandb.Settings:
    """Settings read by wandb from files and environment, without its messages."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether the host and port of `url`, or the proxy for it, accept a connection.

    Runs in a separate thread: without a network, resolving a host name can take much longer than the socket's
    timeout.
    """
    target = urlsplit(url)
    proxy = getproxies().get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=seconds).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def resolve_mode(mode: str) -> str:
    """online, offline or disabled. Raises UserError for an unknown mode, or online without credentials."""
    if mode not in MODES:
        raise UserError(f"tracker.wandb={mode!r}: choose one of {', '.join(MODES)}")
    if mode in ("offline", "disabled"):
        return mode
    wish = _settings().mode  # WANDB_MODE, or set by `wandb offline` in a settings file
    if mode == "auto" and wish in ("offline", "dryrun", "disabled"):
        return "disabled" if wish == "disabled" else "offline"
    if not has_credentials():
        if mode == "online":
            raise UserError(
                "tracker.wandb=online needs credentials: run `wandb login`, or set WANDB_API_KEY, or choose "
                "tracker.wandb=auto"
            )
        return "offline"
    if not reachable(_settings().base_url):
        log.warning("Weights & Biases does not answer: the run is kept offline, `wandb sync` uploads it")
        return "offline"
    return "online"
