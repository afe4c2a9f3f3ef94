"""The table of what a call costs the host beside its work, in the last run on each device."""

from bench.speed.host import UNIT, HostTime

from .markdown import NONE, made, short, table


def block(times: list[HostTime], device: str) -> str:
    """Calls as rows."""
    times = [time for time in times if time.device == device]
    if not times:
        return NONE
    last = [time for time in times if time.date == times[-1].date]
    lines = [
        [f"`{t.call}`", f"{short(t.p20_us)} – {short(t.p50_us)} – {short(t.p80_us)}", f"{t.ratio:.2f}"] for t in last
    ]
    head = ("call", "p20 – p50 – p80, us", f"times the `{UNIT}` of its turn, median")
    return f"{table(head, lines)}\n\n{last[-1].turns} turns, one CPU thread. {made(last[-1])}"
