"""The one entry point: from words to a job, and its exit status (`cli/endings.py` lists them)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diffusion_lab.cli import single, sweep
from diffusion_lab.cli.compose import compose_exact, params
from diffusion_lab.cli.endings import complain, of_error
from diffusion_lab.cli.hand_over import hand_over
from diffusion_lab.cli.usage import usage
from diffusion_lab.cli.words import in_full, read, refuse_broken
from diffusion_lab.system import environment, processes
from diffusion_lab.system.streams import CLOSED, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the command line says (`sys.argv` by default); returns the process's exit status."""
    words = [in_full(word) for word in (sys.argv[1:] if argv is None else argv)]
    with guarded() as (out, _):
        try:
            refuse_broken(words)
            with environment.neutral() as ignored:
                status = _run(words, environment.ignored_messages(ignored))
        except (Exception, KeyboardInterrupt) as error:
            status = of_error(error)
        out.flush()
        if status == 0 and out.error is not None and out.error.errno not in CLOSED:
            return complain(f"standard output cannot be written ({out.error.strerror}): free some space", 2)
        return status


def _run(words: list[str], told: Sequence[str]) -> int:
    """`told`: what of the environment was ignored."""
    if {"-h", "--help"} & set(words):
        print(usage())
        return 0
    line = read(words)
    if line.for_hydra:
        hand_over([*line.flags, *line.overrides], lambda composed: None)
        return 0
    composed, overrides = None, line.overrides
    if not line.sweep:
        composed, overrides = compose_exact(line.overrides)
        if str(composed.hydra.mode).endswith("MULTIRUN"):  # an experiment's file says so
            line = line.as_sweep(params(composed.hydra.sweeper))
    for note in [*told, *line.notes] if processes.is_main() else ():
        print(f"warning: {note}", file=sys.stderr)
    if line.sweep:
        return sweep.run(line, words)
    return single.run(line.flags, overrides, composed)


if __name__ == "__main__":
    from diffusion_lab.__main__ import main as imported  # under its own name: other processes can import it

    sys.exit(imported())
