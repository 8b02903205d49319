"""What of a new configuration does a reload not take over?"""

from smtpguard.config.build import Settings
from smtpguard.inbound.settings import InboundListener
from smtpguard.net.listen import Bind
from smtpguard.outbound.settings import OutboundListener


def needs_restart(running: Settings, new: Settings) -> list[str]:
    """The tables and keys in which `new` differs from what runs and that only a restart changes, for the log."""
    running_binds = _by_binds(running)
    new_binds = _by_binds(new)
    other_sessions = [
        listener
        for binds, listener in running_binds.items()
        if binds in new_binds and new_binds[binds].max_connections != listener.max_connections
    ]
    places = (
        ("the binds of [[listener]]", running_binds.keys() == new_binds.keys()),
        ("max_sessions of [[listener]]", not any(isinstance(one, OutboundListener) for one in other_sessions)),
        ("sessions of [listener.limits]", not any(isinstance(one, InboundListener) for one in other_sessions)),
        ("[dns]", running.resolver == new.resolver and running.canary == new.canary),
        ("[mtasts]", running.sts == new.sts and running.sts_port == new.sts_port),
        ("[admin]", running.admin == new.admin and running.metrics == new.metrics),
        ("[log]", running.log == new.log),
        ("state_dir", running.state_dir == new.state_dir),
    )
    return [place for place, same in places if not same]


def _by_binds(settings: Settings) -> dict[tuple[Bind, ...], OutboundListener | InboundListener]:
    both: list[OutboundListener | InboundListener] = [*settings.listeners, *settings.inbound]
    return {listener.binds: listener for listener in both}
